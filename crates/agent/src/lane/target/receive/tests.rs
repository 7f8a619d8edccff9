use std::sync::mpsc;

use kvm_clone_core::Code;
use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, DigestKey};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::lane::{Base, ImageSpec};

use super::*;
use crate::stream::FrameWriter;

const SEGMENT: Segment = Segment { disk: 0, offset: BLOCK * 32, len: BLOCK * 19 + 512 };

/// A byte that stands for what is in a block.
fn digest(byte: u8) -> Digest {
    Digest([byte; 16])
}

/// What is there: zeros, then data.
fn base() -> Vec<Digest> {
    [vec![Digest::ZERO; 10], vec![digest(1); 10]].concat()
}

fn zero(first: u64, blocks: u32) -> LaneMessage {
    LaneMessage::Zero { offset: SEGMENT.offset + first * BLOCK, blocks }
}

fn block(first: u64, byte: u8) -> LaneMessage {
    let payload = vec![byte; BLOCK_LEN];
    LaneMessage::Blocks {
        offset: SEGMENT.offset + first * BLOCK,
        digests: vec![digest(byte)],
        crc: Some(crc32fast::hash(&payload)),
    }
}

fn want(groups: &[u32]) -> LaneMessage {
    LaneMessage::Want { segment: SEGMENT, groups: groups.to_vec() }
}

fn end(digests: &[Digest]) -> LaneMessage {
    LaneMessage::End(ListKey::of(&key()).list(digests))
}

fn key() -> DigestKey {
    DigestKey::new([1; 32])
}

/// What the receiving end of a compared disk makes of these messages: the segments that are complete, and what it answers.
fn receive(messages: &[LaneMessage]) -> Result<(Vec<Complete>, Vec<LaneAnswer>)> {
    let mut bytes = Vec::new();
    let mut stream = FrameWriter::new(&mut bytes);
    stream.magic().unwrap();
    for message in messages {
        let payload = match message {
            LaneMessage::Blocks { digests, .. } => digests.iter().flat_map(|digest| [digest.0[0]; BLOCK_LEN]).collect(),
            _ => Vec::new(),
        };
        stream.send(Kind::Lane, message, &payload).unwrap();
    }
    let image = ImageSpec::new("/staging", ImageFormat::Raw);
    let target = Target {
        disks: vec![image.clone()],
        bases: vec![Some(Base { image, digests: None, begun: false })],
        manifests: Vec::new(),
        key: key(),
        block: BlockSize::default(),
        verify: Verify::On,
    };
    let told = Arc::new(Told::of(BlockSize::default()));
    told.keep(SEGMENT, There { digests: base(), ..There::default() }).unwrap();
    let (items, received) = mpsc::sync_channel(64);
    let (answers, answered) = mpsc::sync_channel(64);
    let spares = mpsc::sync_channel(1).1;
    let receiving = Receiving { target: Arc::new(target), lists: ListKey::of(&key()), told, items, answers, spares };
    let mut input: Input = Box::new(std::io::Cursor::new(bytes));
    receiving.run(&mut input)?;
    drop(receiving);
    let complete = |item| if let Item::End(complete) = item { Some(complete) } else { None };
    Ok((received.into_iter().filter_map(complete).collect(), answered.into_iter().collect()))
}

fn refused(messages: &[LaneMessage]) -> Error {
    receive(messages).err().unwrap()
}

#[test]
fn what_is_there_is_kept_where_nothing_is_sent() {
    let mut merged = base();
    (merged[2], merged[3], merged[19]) = (digest(7), digest(8), Digest::ZERO);
    let messages = [
        want(&[1]),
        LaneMessage::Begin(SEGMENT),
        block(2, 7),
        block(3, 8),
        zero(19, 1),
        end(&merged),
        LaneMessage::Finish,
    ];
    let (complete, answers) = receive(&messages).unwrap();
    assert_eq!(answers, [LaneAnswer::Blocks { segment: SEGMENT, digests: vec![digest(1); 4] }]);
    assert_eq!(complete[0].digests, merged);
    assert_eq!(complete[0].written, [2..4, 19..20]);
    assert_eq!(complete[0].compared, Compared { blocks: 12, differing: 3 });
}

#[test]
fn a_list_that_would_not_be_the_sources_is_found() {
    let error = refused(&[LaneMessage::Begin(SEGMENT), block(2, 7), end(&base()), LaneMessage::Finish]);
    assert_eq!(error.code, Code::Verification);
    assert_eq!((&error.context["path"][..], &error.context["offset"][..]), ("/staging", "2097152"));
}

#[test]
fn messages_out_of_turn_are_refused() {
    let begin = || LaneMessage::Begin(SEGMENT);
    let other = Segment { offset: 0, ..SEGMENT };
    let cases = [
        vec![begin(), zero(3, 1)],
        vec![begin(), zero(9, 2)],
        vec![begin(), zero(10, 0)],
        vec![begin(), zero(10, 11)],
        vec![begin(), zero(10, u32::MAX)],
        vec![begin(), zero(12, 1), zero(12, 1)],
        vec![begin(), zero(12, 1), block(11, 7)],
        vec![begin(), LaneMessage::Zero { offset: SEGMENT.offset + 10 * BLOCK + 1, blocks: 1 }],
        vec![begin(), LaneMessage::Zero { offset: 0, blocks: 1 }],
        vec![zero(10, 1)],
        vec![LaneMessage::Begin(other)],
        vec![begin(), want(&[1])],
        vec![want(&[1]), want(&[0])],
        vec![want(&[])],
        vec![want(&[1, 1])],
        vec![want(&[2])],
        vec![LaneMessage::Want { segment: other, groups: vec![0] }],
        vec![begin(), begin()],
        vec![begin(), LaneMessage::Finish],
        vec![end(&base())],
    ];
    for messages in cases {
        let error = refused(&messages);
        assert_eq!(error.code, Code::Transfer, "{messages:?}: {error:?}");
        assert!(!error.transient, "{messages:?}: {error:?}");
    }
}
