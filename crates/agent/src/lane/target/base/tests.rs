use std::path::Path;

use kvm_clone_core::Code;
use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, Extent};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::lane::ImageSpec;

use super::*;
use crate::device::DeviceError;

/// A disk whose medium fails in one place.
struct Bad {
    size: u64,
    at: u64,
}

impl ReadDevice for Bad {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, offset: u64, len: u64) -> crate::device::Result<Vec<Extent>> {
        Ok(vec![Extent::data(offset, len)])
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> crate::device::Result<()> {
        buf.fill(7);
        if !(offset..offset + buf.len() as u64).contains(&self.at) {
            return Ok(());
        }
        let error = std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        Err(DeviceError::io(Path::new("/pool/base"), "read", error).at(self.at))
    }

    fn drop_cache(&self, _: u64, _: u64) {}
}

fn key() -> DigestKey {
    DigestKey::new([3; 32])
}

/// A base of 20 blocks and a half, of a disk of 40.
fn base(at: u64) -> Arc<OpenBase> {
    let device = Arc::new(Bad { size: 20 * BLOCK + BLOCK / 2, at });
    let base = Base { image: ImageSpec::new("/pool/base", ImageFormat::Raw), digests: None, begun: false };
    Arc::new(OpenBase::over(device, &base, &key(), (BlockSize::default(), 40 * BLOCK)).unwrap().0)
}

const SEGMENT: Segment = Segment { disk: 0, offset: 16 * BLOCK, len: 16 * BLOCK };

#[test]
fn a_medium_that_fails_is_named_with_the_place() {
    let readers = Readers::start(&key(), BlockSize::default());
    let error = base(19 * BLOCK).look(&readers, SEGMENT).unwrap().finish().unwrap_err();
    assert_eq!(error.code, Code::Transfer);
    assert_eq!((&error.context["path"][..], &error.context["offset"][..]), ("/pool/base", "1245184"));
}

#[test]
fn behind_its_end_a_base_is_zero_and_is_not_read() {
    let readers = Readers::start(&key(), BlockSize::default());
    let looked = base(u64::MAX).look(&readers, SEGMENT).unwrap().finish().unwrap();
    let half = [vec![7; BLOCK_LEN / 2], vec![0; BLOCK_LEN / 2]].concat();
    let whole = vec![key().block(&[7; BLOCK_LEN]); 4];
    let zeros = vec![Digest::ZERO; 11];
    assert_eq!(looked.digests, [whole, vec![key().block(&half)], zeros].concat());
    assert_eq!(looked.read, 5 * BLOCK);
}

#[test]
fn a_base_that_is_larger_than_its_disk_is_no_base() {
    let device = Arc::new(Bad { size: 41 * BLOCK, at: 0 });
    let base = Base { image: ImageSpec::new("/pool/base", ImageFormat::Raw), digests: None, begun: false };
    assert!(OpenBase::over(device, &base, &key(), (BlockSize::default(), 40 * BLOCK)).is_err());
}
