//! Seals: what ties the files of a disk to the content that they were found to have, so that a disk that nobody wrote to
//! needs not be read to be known.
//!
//! A seal says: these files, which looked like this, held the content of that root. It is *trusted* while they look the
//! same and their look proves that nobody wrote: see [`FileFacts::proof`] and `docs/src/architecture.md`. Whatever is in
//! doubt costs reading, never correctness.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocks::{KeyId, Root};
use crate::name::DiskTarget;
use crate::wire::facts::Identity;
use crate::wire::replica::{SealQuery, SealState};

/// The version of the file's layout.
const VERSION: u32 = 1;

/// File systems of one host's own (the `*_SUPER_MAGIC` of statfs(2)) that give each write its time, through mappings too:
/// ext2, ext3 and ext4, XFS, btrfs, F2FS. Not tmpfs: what is written there through a mapping changes no time.
const LOCAL: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// A seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The operation that made the point.
    pub operation: Uuid,
    /// The disk.
    pub disk: DiskTarget,
    /// The root over the disk's digests.
    pub root: Root,
    /// The key of the digests, by its public name.
    pub key: KeyId,
    /// The boot of the host: what a crash lost, and devices that are numbered anew, end every seal.
    pub boot_id: String,
    /// What the content is tied to.
    pub proof: Proof,
}

/// What the content is tied to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// All files of the chain, the image first.
    Files(Vec<SealedFile>),
    /// Nothing, because of this: the root is known, but is never trusted.
    Nothing(String),
}

/// A file, and how it looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedFile {
    /// Its path, as the image's definition names it.
    pub path: String,
    /// What it was.
    pub identity: Identity,
}

/// The file that a seal is kept in.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    seal: Seal,
    /// BLAKE3 over the seal: finds what was torn or edited; it proves nothing about who wrote it.
    check: String,
}

impl Seal {
    /// The seal as the text of a file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let document = Document { version: VERSION, seal: self.clone(), check: self.check() };
        // Strings, numbers and lists: there is nothing in it that JSON cannot say.
        serde_json::to_vec_pretty(&document).unwrap_or_default()
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong with it, where it is not just what [`Seal::encode`] writes.
    pub fn decode(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| format!("the seal cannot be read: {error}");
        let Version { version } = serde_json::from_slice(text).map_err(damaged)?;
        if version != VERSION {
            return Err(format!("the seal has version {version}, this program knows version {VERSION}"));
        }
        let document: Document = serde_json::from_slice(text).map_err(damaged)?;
        if document.check == document.seal.check() { Ok(document.seal) } else { Err("the seal is damaged".to_owned()) }
    }

    fn check(&self) -> String {
        blake3::hash(&serde_json::to_vec(self).unwrap_or_default()).to_hex().to_string()
    }

    /// Whether the seal holds, given how the files of the chain look now, the image first: each with its facts, or why it
    /// cannot be looked at.
    #[must_use]
    pub fn judge(&self, query: &SealQuery, boot_id: &str, now: &[Result<FileFacts, String>]) -> SealState {
        if (self.operation, &self.disk) != (query.operation, &query.disk) {
            return SealState::Absent { why: Some("the seal belongs to another disk or another point".to_owned()) };
        }
        let (root, key) = (self.root, self.key);
        match self.doubt(boot_id, now) {
            None => SealState::Trusted { root, key },
            Some(why) => SealState::Untrusted { root, key, why },
        }
    }

    /// Why the seal proves nothing now.
    fn doubt(&self, boot_id: &str, now: &[Result<FileFacts, String>]) -> Option<String> {
        let files = match &self.proof {
            Proof::Nothing(why) => return Some(why.clone()),
            Proof::Files(files) => files,
        };
        if self.boot_id != boot_id {
            return Some("the host was booted since".to_owned());
        }
        if files.is_empty() || files.len() != now.len() {
            return Some("the disk lies in other files now".to_owned());
        }
        files.iter().zip(now).find_map(|(sealed, now)| {
            let proof = now.as_ref().map_err(Clone::clone).and_then(FileFacts::proof);
            match proof {
                Ok(now) if now == *sealed => None,
                Ok(now) if now.path != sealed.path => Some(format!("{} is another file of the disk now", now.path)),
                Ok(now) => Some(format!("{} was changed, or is another file now", now.path)),
                Err(why) => Some(why),
            }
        })
    }
}

/// What can be seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Its path, as the image's definition names it.
    pub path: String,
    /// Its size, times and number.
    pub identity: Identity,
    /// Whether it is a regular file.
    pub regular: bool,
    /// The kind of file system, as statfs(2) numbers them.
    pub file_system: u64,
    /// Who can write to it now.
    pub writers: Writers,
}

/// Who has a file open for writing, or mapped so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Nobody on this host, the kernel included.
    Nobody,
    /// Somebody.
    Somebody,
    /// This user may not ask.
    Unknown,
}

impl FileFacts {
    /// The file as a seal keeps it, if its look proves that nobody writes to it unseen.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn proof(&self) -> Result<SealedFile, String> {
        let Self { path, identity, .. } = self;
        if !self.regular {
            return Err(format!("{path} is no regular file"));
        }
        if !LOCAL.contains(&self.file_system) {
            return Err(format!("{path} lies on a file system whose times prove nothing ({:#x})", self.file_system));
        }
        // Small old ext file systems count in whole seconds.
        if identity.changed % 1_000_000_000 == 0 {
            return Err(format!("{path} lies on a file system that keeps times in seconds"));
        }
        match self.writers {
            Writers::Nobody => Ok(SealedFile { path: path.clone(), identity: *identity }),
            Writers::Somebody => Err(format!("{path} is open for writing")),
            Writers::Unknown => Err(format!("whether {path} is open for writing cannot be told")),
        }
    }
}

/// Whether a file's last change was over when it was looked at, so that a later one would have another time. `now` is what the
/// kernel would have stamped a file with right before the look (`CLOCK_REALTIME_COARSE`, clock_gettime(2)), in nanoseconds: it stands still within a tick, and all
/// changes of a tick have one time. A change that lies in the future (the clock was set) proves nothing either.
#[must_use]
pub const fn is_settled(identity: &Identity, now: i128) -> bool {
    now > identity.changed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::ImageFormat;
    use crate::wire::lane::ImageSpec;

    fn facts(path: &str) -> FileFacts {
        let identity =
            Identity { size: 5, inode: (1, 2), modified: 3, changed: 1_700_000_000_123_456_789, quiet: true };
        FileFacts { path: path.to_owned(), identity, regular: true, file_system: 0xef53, writers: Writers::Nobody }
    }

    fn seal() -> Seal {
        Seal {
            operation: Uuid::nil(),
            disk: "vda".parse().unwrap(),
            root: Root([7; 32]),
            key: KeyId([8; 16]),
            boot_id: "boot".to_owned(),
            proof: Proof::Files(["/a", "/b"].map(|path| facts(path).proof().unwrap()).to_vec()),
        }
    }

    fn query() -> SealQuery {
        let image = ImageSpec::new("/a", ImageFormat::Qcow2);
        SealQuery { operation: Uuid::nil(), disk: "vda".parse().unwrap(), image }
    }

    /// What is said of a disk of two files after `change` to the second one.
    fn judged(change: impl FnOnce(&mut FileFacts)) -> SealState {
        let mut second = facts("/b");
        change(&mut second);
        seal().judge(&query(), "boot", &[Ok(facts("/a")), Ok(second)])
    }

    fn is_untrusted(state: &SealState) -> bool {
        matches!(state, SealState::Untrusted { root: Root([7, ..]), key: KeyId([8, ..]), .. })
    }

    #[test]
    fn it_is_trusted_while_all_looks_the_same() {
        assert_eq!(judged(|_| ()), SealState::Trusted { root: Root([7; 32]), key: KeyId([8; 16]) });
    }

    #[test]
    fn whatever_looks_different_or_proves_nothing_is_doubted() {
        for state in [
            judged(|file| file.identity.size += 1),
            judged(|file| file.identity.inode.0 += 1),
            judged(|file| file.identity.inode.1 += 1),
            judged(|file| file.identity.modified += 1),
            judged(|file| file.identity.changed += 1),
            judged(|file| file.path = "/c".to_owned()),
            judged(|file| file.regular = false),
            judged(|file| file.file_system = 0x6969),
            judged(|file| file.file_system = 0x0102_1994),
            judged(|file| file.writers = Writers::Somebody),
            judged(|file| file.writers = Writers::Unknown),
            seal().judge(&query(), "another boot", &[Ok(facts("/a")), Ok(facts("/b"))]),
            seal().judge(&query(), "boot", &[Ok(facts("/a"))]),
            seal().judge(&query(), "boot", &[Ok(facts("/b")), Ok(facts("/a"))]),
            seal().judge(&query(), "boot", &[Ok(facts("/a")), Ok(facts("/b")), Ok(facts("/c"))]),
            seal().judge(&query(), "boot", &[Ok(facts("/a")), Err("gone".to_owned())]),
            Seal { proof: Proof::Files(Vec::new()), ..seal() }.judge(&query(), "boot", &[]),
            Seal { proof: Proof::Nothing("a device".to_owned()), ..seal() }.judge(&query(), "boot", &[]),
        ] {
            assert!(is_untrusted(&state), "{state:?}");
        }
    }

    #[test]
    fn times_in_whole_seconds_prove_nothing() {
        let mut file = facts("/a");
        file.identity.changed = 1_700_000_000_000_000_000;
        assert!(file.proof().unwrap_err().contains("seconds"));
    }

    #[test]
    fn another_point_or_disk_has_no_seal() {
        let files = [Ok(facts("/a")), Ok(facts("/b"))];
        let other = SealQuery { operation: Uuid::max(), ..query() };
        assert!(matches!(seal().judge(&other, "boot", &files), SealState::Absent { why: Some(_) }));
        let other = SealQuery { disk: "vdb".parse().unwrap(), ..query() };
        assert!(matches!(seal().judge(&other, "boot", &files), SealState::Absent { why: Some(_) }));
    }

    #[test]
    fn only_changes_that_are_over_are_settled() {
        let identity = facts("/a").identity;
        for (after, settled) in [(-1, false), (0, false), (1, true)] {
            assert_eq!(is_settled(&identity, identity.changed + after), settled);
        }
    }

    #[test]
    fn another_version_is_not_read() {
        let text = String::from_utf8(seal().encode()).unwrap();
        let other = text.replace(r#""version": 1"#, r#""version": 2"#);
        assert!(Seal::decode(other.as_bytes()).unwrap_err().contains("version 2"));
    }

    proptest! {
        #[test]
        fn a_file_is_read_back_or_refused(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
            let mut text = seal().encode();
            prop_assert_eq!(Seal::decode(&text), Ok(seal()));
            prop_assert!(Seal::decode(&text[..cut.index(text.len())]).is_err());
            let at = at.index(text.len());
            text[at] ^= 1u8 << bit;
            // A changed bit of the white space may leave the same meaning, and nothing else may be left.
            prop_assert!(Seal::decode(&text).is_err() || Seal::decode(&text) == Ok(seal()));
        }
    }
}
