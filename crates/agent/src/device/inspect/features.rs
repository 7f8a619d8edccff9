//! The optional features of qcow2, by name.

use std::fmt;

/// Something that not every qcow2 image has, and that matters to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Incompatible bit 2: the guest's data lies in another file.
    ExternalDataFile,
    /// Incompatible bit 3: compressed clusters use zstd instead of deflate.
    ZstdCompression,
    /// Incompatible bit 3 with a compression that has no name yet.
    OtherCompression(u8),
    /// Incompatible bit 4: subclusters.
    ExtendedL2,
    /// An incompatible bit that the specification did not know when this was written.
    UnknownIncompatible(u8),
    /// Encryption method 1.
    AesEncryption,
    /// Encryption method 2.
    LuksEncryption,
    /// An encryption method without a name.
    OtherEncryption(u32),
    /// Compatible bit 0.
    LazyRefcounts,
    /// The bitmaps extension: persistent dirty bitmaps, which a copy of the content does not have.
    Bitmaps,
}

impl Feature {
    /// Whether the guest's data cannot be read without knowing the feature.
    #[must_use]
    pub const fn hinders_reading(self) -> bool {
        !matches!(self, Self::LazyRefcounts | Self::Bitmaps)
    }

    /// Whether qemu reads it without being told anything more, and we do not.
    #[must_use]
    pub const fn is_read_by_qemu(self) -> bool {
        matches!(self, Self::ExternalDataFile | Self::ZstdCompression | Self::ExtendedL2)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExternalDataFile => f.write_str("an external data file"),
            Self::ZstdCompression => f.write_str("zstd compression"),
            Self::OtherCompression(kind) => write!(f, "unknown compression {kind}"),
            Self::ExtendedL2 => f.write_str("extended L2 entries"),
            Self::UnknownIncompatible(bit) => write!(f, "unknown incompatible feature {bit}"),
            Self::AesEncryption => f.write_str("AES encryption"),
            Self::LuksEncryption => f.write_str("LUKS encryption"),
            Self::OtherEncryption(method) => write!(f, "unknown encryption {method}"),
            Self::LazyRefcounts => f.write_str("lazy reference counts"),
            Self::Bitmaps => f.write_str("persistent bitmaps"),
        }
    }
}
