//! Everything that no rule speaks of stays as it was.

use proptest::prelude::*;

use super::*;

/// The text without our lineage, and without the place that was made for it.
fn without_lineage(xml: &str) -> String {
    let start = xml.find("\n    <kvm-clone:lineage").unwrap();
    let end = xml.find("</kvm-clone:lineage>").unwrap() + "</kvm-clone:lineage>".len();
    format!("{}{}", &xml[..start], &xml[end..]).replace("\n  <metadata>\n  </metadata>", "")
}

#[test]
fn a_replica_differs_in_its_lineage_alone() {
    let domain = Domain::parse(SMALL).unwrap();
    let (xml, notes) = transform(&domain, &replica_of(&domain)).unwrap();
    assert_eq!(without_lineage(&xml), SMALL);
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn what_others_wrote_stays_byte_for_byte() {
    let domain = Domain::parse(WEB).unwrap();
    let (xml, _) = transform(&domain, &clone_of(&domain)).unwrap();
    let pieces = [
        "<!-- made by hand; every byte that no rule speaks of must stay -->\n",
        "<domain xmlns:qemu=\"http://libvirt.org/schemas/domain/qemu/1.0\" type='kvm'>",
        "<description>shop &amp; forum, „größer“ &lt;than&gt; it looks 日本</description>",
        "<other:tool xmlns:other='urn:other' note='a \"quoted\" word'><![CDATA[ <raw> & kept ]]></other:tool>",
        "<libosinfo:libosinfo xmlns:libosinfo=\"http://libosinfo.org/xmlns/libvirt/domain/1.0\">",
        "<qemu:arg value='ICH9-LPC.disable_s3=1&#10;x'/>",
        "<driver name='qemu' type='qcow2' cache='none' discard='unmap'/>",
        "<serial>SYSTEM-1</serial>",
    ];
    for piece in pieces {
        assert!(xml.contains(piece), "{piece} was changed");
    }
}

/// Foreign elements, nested, with namespaces, comments and texts that need care.
fn foreign() -> impl Strategy<Value = String> {
    let text = "[a-zé<>&'\" \n]{0,8}".prop_map(|text| edit::escape(&text));
    let leaf = (text.clone(), "[a-z]{1,5}", text)
        .prop_map(|(value, name, text)| format!("<x{name} v=\"{value}\">{text}</x{name}>"));
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop::collection::vec(inner, 0..4)
            .prop_map(|children| format!("<f:box xmlns:f='urn:f' f:a='1'><!-- c -->{}</f:box>", children.join("\n ")))
    })
}

proptest! {
    #[test]
    fn unknown_elements_come_through_anywhere(inside in foreign(), beside in foreign(), device in foreign()) {
        let xml = small_with("<memory", &format!("<metadata>\n    <a/>{inside}\n  </metadata>{beside}<memory"));
        let xml = xml.replace("<!--more-->", &format!("<memballoon>{device}</memballoon>"));
        let domain = Domain::parse(&xml).unwrap();
        let (copy, _) = transform(&domain, &replica_of(&domain)).unwrap();
        prop_assert_eq!(without_lineage(&copy), xml);
    }
}
