//! What agents, controllers and lanes say to each other.

use std::path::Path;

use kvm_clone_core::blocks::compare::GroupPage;
use kvm_clone_core::blocks::{BlockSize, Digest, DigestKey, Root};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::MAGIC;
use kvm_clone_core::wire::control::{FromAgent, Hello, NewImage, Reply, Request, ToAgent, Welcome};
use kvm_clone_core::wire::direct::Route;
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::frame::{Encoder, HEADER_LEN, Kind};
use kvm_clone_core::wire::lane::{
    Base, BaseDigests, Compared, ImageSpec, LaneAnswer, LaneCommand, LaneEvent, LaneMessage, OnDivergence, Segment,
    Trust, Verify,
};
use kvm_clone_core::wire::marker::{FinalFile, Marker};
use kvm_clone_core::wire::packed::Packer;
use kvm_clone_core::wire::replica::{DiskChain, Flatten, HeldImage, OverlayFile, RenewedFile, SealOrder, SealState};
use kvm_clone_core::wire::verify::{DigestQuery, Digested};
use kvm_clone_core::{Error, wire};
use uuid::Uuid;

use super::seed;

/// Writes the seeds of `frame_decoder`.
pub(super) fn write(dir: &Path) {
    let frame = |kind, message: &ToAgent| Encoder::default().encode(kind, message, 0).unwrap();
    let body = |frame: Vec<u8>| frame[HEADER_LEN..].to_vec();
    let hello =
        FromAgent::Hello(Hello { protocol: wire::PROTOCOL_VERSION, build: "00".repeat(32), session: Uuid::nil() });
    let welcome =
        Welcome { protocol: wire::PROTOCOL_VERSION, silence_seconds: 30, controller: "here pid 1".to_owned() };

    let flatten = Flatten {
        operation: Uuid::nil(),
        overlay: image(),
        above: Some("/pool/top.qcow2".to_owned()),
        exact_size: 1000,
    };

    seed(dir, "stream-of-an-agent", 0, &agent_stream(&hello));
    seed(dir, "stream-of-a-lane", 0, &lane_stream());
    for (name, message) in [
        ("welcome", ToAgent::Welcome(welcome)),
        ("marker", ToAgent::Request(1, Request::PutMarker(Box::new(marker())))),
        ("flatten", ToAgent::Request(3, Request::Flatten(flatten))),
        ("renew", ToAgent::Request(7, Request::RenewFiles(Uuid::nil()))),
        ("hold", ToAgent::Request(9, Request::HoldImages(vec![held()]))),
        ("in-place", ToAgent::Request(8, Request::TakeInPlace(new_image()))),
        ("seals", ToAgent::Request(4, Request::TakeSeals(vec![seal_order()]))),
        ("new-image", ToAgent::Request(2, Request::CreateImage(new_image()))),
        ("group-digests", ToAgent::Request(5, Request::GroupDigests(digests_of(Digested::Disk(image())), 7))),
        (
            "block-digests",
            ToAgent::Request(6, Request::BlockDigests(digests_of(Digested::Manifest("/m".to_owned())), vec![0, 9])),
        ),
        ("source", ToAgent::Lane(0, source())),
    ] {
        seed(dir, &format!("to-agent-{name}"), 1, &body(frame(Kind::Message, &message)));
    }
    let answers = [
        ("hello", hello),
        ("error", FromAgent::Response(1, Err(Error::transfer("lost").with("host", "alpha").help("Try again")))),
        ("renewed", FromAgent::Response(3, Ok(Reply::Renewed(Err("changed".to_owned()))))),
        ("seals", FromAgent::Response(3, Ok(Reply::Seals(vec![SealState::Absent { why: None }])))),
        ("taken-up", FromAgent::Response(2, Ok(Reply::TakenUp(Err("torn".to_owned()))))),
        ("segments", FromAgent::Response(2, Ok(Reply::Segments { segments: vec![(0, 65536)], next: Some(7) }))),
        ("group-digests", FromAgent::Response(5, Ok(Reply::GroupDigests(group_page())))),
        ("progress", FromAgent::Progress(2, 4 << 20)),
    ];
    for (name, message) in answers {
        let made = Encoder::default().encode(Kind::Message, &message, 0).unwrap();
        seed(dir, &format!("from-agent-{name}"), 2, &body(made));
    }
    let blocks = LaneMessage::Blocks { offset: 65536, digests: vec![Digest([7; 16]); 2], crc: Some(7) };
    seed(dir, "lane-blocks", 3, &body(Encoder::default().encode(Kind::Lane, &blocks, 0).unwrap()));
    let want = LaneMessage::Want { segment: segment(), groups: vec![0, 63] };
    seed(dir, "lane-want", 3, &body(Encoder::default().encode(Kind::Lane, &want, 0).unwrap()));
    seed(dir, "lane-target", 4, &body(Encoder::default().encode(Kind::Message, &target(), 0).unwrap()));
    let done = LaneEvent::Done {
        segment: segment(),
        data_blocks: 2,
        compared: Compared { blocks: 3, differing: 1 },
        kept: 65536,
    };
    seed(dir, "lane-done", 5, &body(Encoder::default().encode(Kind::Message, &done, 0).unwrap()));
    let groups = LaneAnswer::Groups { segment: segment(), digests: vec![(1, Digest([7; 16])), (63, Digest([8; 16]))] };
    seed(dir, "lane-groups", 7, &body(Encoder::default().encode(Kind::Lane, &groups, 0).unwrap()));
}

fn digests_of(of: Digested) -> DigestQuery {
    DigestQuery { of, key: key(), block: BlockSize::default(), size: 1 << 30 }
}

fn group_page() -> GroupPage {
    GroupPage { groups: vec![(7, Digest([7; 16])), (300, Digest([8; 16]))], next: Some(1000) }
}

fn source() -> LaneCommand {
    LaneCommand::Source {
        disks: vec![image()],
        compared: vec![0],
        key: key(),
        block: BlockSize::default(),
        route: Route::Direct,
    }
}

fn target() -> LaneCommand {
    let trust = Trust::Checked(OnDivergence::Discard);
    let sealed = Trust::Sealed(Root([9; 32]));
    let base = |trust| Base {
        image: image(),
        digests: Some(BaseDigests { manifest: "/kept".to_owned(), trust }),
        begun: true,
    };
    LaneCommand::Target {
        disks: vec![image(), image(), image()],
        bases: vec![Some(base(trust)), None, Some(base(sealed))],
        manifests: vec!["/m".to_owned(); 3],
        key: key(),
        block: BlockSize::default(),
        verify: Verify::Media,
        route: Route::Relay,
    }
}

fn agent_stream(hello: &FromAgent) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut stream = b"Welcome to alpha!\r\n".to_vec();
    stream.extend(MAGIC);
    stream.extend(encoder.encode(Kind::Message, hello, 0).unwrap());
    let packed = Packer::default().pack(b"<domain/><domain/>").unwrap();
    stream.extend(encoder.encode(Kind::Relay, &3u16, packed.len()).unwrap());
    stream.extend(packed);
    stream.extend(encoder.encode(Kind::Message, &FromAgent::Heartbeat, 0).unwrap());
    stream
}

fn lane_stream() -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut stream = MAGIC.to_vec();
    let blocks = LaneMessage::Blocks { offset: 0, digests: vec![Digest([7; 16])], crc: Some(0) };
    stream.extend(encoder.encode(Kind::Lane, &LaneMessage::Begin(segment()), 0).unwrap());
    stream.extend(encoder.encode(Kind::Lane, &blocks, 16).unwrap());
    stream.extend([1; 16]);
    let zero = LaneMessage::Zero { offset: 2 << 16, blocks: 3 };
    for message in [zero, LaneMessage::End(Digest([7; 16])), LaneMessage::Finish] {
        stream.extend(encoder.encode(Kind::Lane, &message, 0).unwrap());
    }
    stream
}

fn segment() -> Segment {
    Segment { disk: 0, offset: 0, len: 1 << 26 }
}

fn key() -> DigestKey {
    DigestKey::new([9; 32])
}

fn image() -> ImageSpec {
    let backing = vec![("/pool/base.img".to_owned(), ImageFormat::Raw)];
    ImageSpec { backing, ..ImageSpec::new("/pool/web1.qcow2", ImageFormat::Qcow2) }
}

fn new_image() -> NewImage {
    NewImage {
        operation: Uuid::nil(),
        disk: 0,
        image: image(),
        virtual_size: 1 << 30,
        manifest: "/m".to_owned(),
        key: key(),
        block: BlockSize::default(),
        owner: Some((64055, 64055)),
        mode: 0o600,
    }
}

fn overlay() -> OverlayFile {
    OverlayFile {
        disk: "vda".parse().unwrap(),
        path: "/pool/web1_clone-vda.overlay".to_owned(),
        image: "/pool/web1_clone-vda.img".to_owned(),
        format: ImageFormat::Raw,
        under: vec![("/pool/oldest.img".to_owned(), ImageFormat::Raw)],
        above: Some("/pool/top.qcow2".to_owned()),
        exact_size: 1000,
        flattened: None,
    }
}

fn seal_order() -> SealOrder {
    let seen = vec![identity()];
    let disk = "vda".parse().unwrap();
    SealOrder { operation: Uuid::nil(), disk, root: Root([1; 32]), key: key().id(), image: image(), seen }
}

pub(super) fn marker() -> Marker {
    Marker {
        operation: Uuid::nil(),
        source: "web1 on alpha".to_owned(),
        machine: "web1_clone".to_owned(),
        uuid: Uuid::nil(),
        keys: vec!["name-web1_clone".to_owned()],
        staging: vec!["/pool/.staging".to_owned()],
        finals: vec![FinalFile { path: "/pool/web1_clone-vda.qcow2".to_owned(), identity: None }],
        directories: vec!["/tpm".to_owned()],
        pools: vec!["default".to_owned()],
        manifests: vec!["/m".to_owned()],
        sync: true,
        overlays: vec![overlay()],
        merging: true,
        chains: vec![DiskChain { disk: "vda".parse().unwrap(), images: image().backing }],
        in_place: vec!["/dev/vg/web1".to_owned()],
        renewed: vec![RenewedFile {
            path: "/tpm/state".to_owned(),
            staging: Some("/tpm/.staging".to_owned()),
            before: Some("00".repeat(32)),
        }],
        outdated: vec!["/old".to_owned()],
        replaced: Vec::new(),
        autostart_off: true,
        created: "2030-01-02T03:04:05Z".to_owned(),
    }
}

fn identity() -> Identity {
    Identity { size: 1, inode: (2, 3), modified: 4, changed: 5, quiet: true }
}

fn held() -> HeldImage {
    HeldImage::shared("/images/web1.qcow2".to_owned(), Some(identity()))
}
