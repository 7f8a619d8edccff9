//! Definitions that nobody should have made: a clear error, at once, never a panic.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "that it ends soon can only be seen with a clock"
)]

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn refused(xml: &str, why: &str) {
    let started = Instant::now();
    let error = Domain::parse(xml).unwrap_err();
    assert!(error.message.contains(why), "{}", error.message);
    assert_eq!(error.code.number(), 1009);
    assert!(!error.help.is_empty());
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
}

#[test]
fn entities_are_refused() {
    let laughs = "<!DOCTYPE lolz [<!ENTITY a 'lol'><!ENTITY b '&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;'>]>";
    refused(&format!("{laughs}<domain><name>&c;</name></domain>"), "document type");
    refused("<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>", "document type");
    refused("<domain><name>&c;</name></domain>", "cannot be used");
}

#[test]
fn depth_size_and_attributes_are_bounded() {
    refused(&"<a>".repeat(100_000), "nested deeper");
    refused(&format!("<domain>{}{}</domain>", "<a>".repeat(70), "</a>".repeat(70)), "nested deeper");
    refused(&" ".repeat(100 << 20), "bytes");
    let attributes: String = (0..100_000).map(|n| format!("a{n}='' ")).collect();
    refused(&format!("<domain {attributes}/>"), "attributes");
    refused(&"<".repeat(1_000_000), "cannot be used");
    refused(&"<!--".repeat(200_000), "cannot be used");
}

#[test]
fn depth_hides_in_no_comment_or_value() {
    let quiet =
        format!("<!--{0}--><description a='{1}'><![CDATA[{0}]]></description>", "<a>".repeat(99), ">".repeat(99));
    let xml = small_with("<vcpu>", &format!("{quiet}<vcpu>"));
    assert!(Domain::parse(&xml).is_ok());
}

#[test]
fn what_is_no_definition_is_refused() {
    let small = |old: &str, new: &str| small_with(old, new);
    let cases = [
        (String::new(), "cannot be used"),
        ("<network/>".to_owned(), "not a <domain>"),
        ("<domain xmlns='urn:x'/>".to_owned(), "not a <domain>"),
        ("<domain type='kvm' type='qemu'/>".to_owned(), "type"),
        (small("<name>small</name>", ""), "no <name>"),
        (small("<name>small</name>", "<name>a&#10;b</name>"), "name of a machine"),
        (small("<name>small</name>", "<name>small</name><name>other</name>"), "more than one <name>"),
        (small("11111111-2222-4333-8444-555555555555", "x"), "not a UUID"),
        (small("</devices>", "</devices><devices/>"), "more than one <devices>"),
        (small("dev='vda'", "dev='../x'"), "target device"),
        (small("<target dev='vda' bus='virtio'/>", ""), "no target"),
        (with_device("<disk><target dev='vda'/></disk>"), "two disks vda"),
        (small("/pool/", "/pool/&#x1b;[2J"), "control characters"),
        (small("<vcpu>", "<title>&#7;</title><vcpu>"), "control characters"),
        (small("<source ", "<:source "), "begins with a colon"),
        (small("<target dev=", "<target :dev="), "begins with a colon"),
        (small("</domain>", ""), "cannot be used"),
        (small("</domain>", "</domain><domain/>"), "cannot be used"),
    ];
    for (xml, why) in cases {
        refused(&xml, why);
    }
}

/// Pieces that make many texts which nearly are definitions.
fn nearly_xml() -> impl Strategy<Value = String> {
    let pieces = [
        "<domain>",
        "</domain>",
        "<name>",
        "</name>",
        "<a ",
        "b='",
        "'",
        "\"",
        "/>",
        ">",
        "<",
        "&amp;",
        "&#x0;",
        "&",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<?x",
        "?>",
        "x:",
        "xmlns:x='u'",
        "xmlns=''",
        "xml:id='1'",
        "é",
        "\u{feff}",
        "\r\n",
        " ",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(xml in nearly_xml()) {
        let _ = Domain::parse(&xml);
        let _ = Domain::parse(&format!("<domain><name>a</name><uuid>{}</uuid>{xml}</domain>", Uuid::nil()));
    }

    #[test]
    fn no_change_of_a_good_definition_makes_it_panic(at in 0..WEB.len(), piece in nearly_xml()) {
        let at = (0..=at).rev().find(|at| WEB.is_char_boundary(*at)).unwrap_or(0);
        let (head, tail) = WEB.split_at(at);
        if let Ok(domain) = Domain::parse(&format!("{head}{piece}{tail}")) {
            let _ = refusals(&domain, &CarryContext { paths_present: &BTreeSet::new(), whereabouts: Whereabouts::SameHost, identity: Identity::New, tpm: TpmState::New });
            let _ = transform(&domain, &clone_of(&domain));
        }
    }
}
