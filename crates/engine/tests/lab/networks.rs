//! Interfaces, and what the target's libvirt makes of them.

use crate::common::number;
use crate::pair::{Pair, web};
use kvm_clone_core::plan::{CloneRequest, NetworkTarget};
use kvm_clone_lab::define_machine;

/// Clones `web1` with these networks mapped, and starts and removes the copy.
async fn starts(pair: &Pair, networks: &[(&str, &str)]) -> String {
    let to = |new: &str| if new == "none" { NetworkTarget::None } else { NetworkTarget::Named(new.parse().unwrap()) };
    let networks = networks.iter().map(|(old, new)| ((*old).to_owned(), to(new))).collect();
    pair.clone(CloneRequest { networks, ..CloneRequest::default() }).await.unwrap();
    let xml = pair.copy();
    pair.beta.exec(&["virsh", "-q", "start", "web1_clone"]).unwrap();
    pair.beta
        .shell("virsh -q destroy web1_clone; virsh -q undefine web1_clone; rm /var/lib/libvirt/images/web1_c*")
        .unwrap();
    xml
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_network_asks_of_the_target_is_seen_on_a_real_host() {
    let Some(pair) = Pair::new("what_a_network_asks_of_the_target") else { return };
    let nics = "<interface type='network'><source network='default' portgroup='eng'/><filterref filter='own'/></interface>\
                <interface type='bridge'><source bridge='ovs'/><vlan><tag id='5'/></vlan>\
                <virtualport type='openvswitch'/></interface>\
                <serial type='file'><source path='/srv/log/tty.log'/></serial>";
    pair.alpha.shell("echo \"<filter name='own'/>\" > /root/f.xml; virsh -q nwfilter-define /root/f.xml").unwrap();
    define_machine(&pair.alpha, web().devices_xml(nics)).unwrap();
    let mapped = vec![("ovs".to_owned(), NetworkTarget::Named("default".parse().unwrap()))];
    let refused = async || {
        let request = CloneRequest { networks: mapped.clone(), ..CloneRequest::default() };
        let error = pair.clone(request).await.unwrap_err();
        assert_eq!(number(&error), 1005, "{error:?}");
        error.message
    };
    assert!(refused().await.contains("no port group \"eng\""));
    let group = "<portgroup name='eng'/>";
    pair.beta.shell(&format!("virsh -q net-update default add-last portgroup \"{group}\" --live --config")).unwrap();
    assert!(refused().await.contains("no network filter \"own\""));
    pair.beta.shell("echo \"<filter name='own'/>\" > /root/f.xml; virsh -q nwfilter-define /root/f.xml").unwrap();

    let xml = starts(&pair, &[("ovs", "default")]).await;
    assert!(xml.contains("portgroup='eng'") && xml.contains("<filterref filter='own'/>"), "{xml}");
    assert!(!xml.contains("<vlan>") && !xml.contains("openvswitch"), "{xml}");
    assert!(xml.contains("/var/log/libvirt/qemu/web1_clone-tty.log"), "{xml}");
}

/// libvirtd 9.0 crashes when a machine starts that has an interface of type `null`.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_interface_is_unplugged_starts() {
    let Some(pair) = Pair::new("a_copy_whose_interface_is_unplugged") else { return };
    let more = "<mtu size='1400'/><port isolated='yes'/><bandwidth><inbound average='1000'/></bandwidth>";
    let nic = format!("<interface type='bridge'><source bridge='br9'/>{more}<model type='virtio'/></interface>");
    define_machine(&pair.alpha, web().devices_xml(&nic)).unwrap();
    let xml = starts(&pair, &[("br9", "none")]).await;
    assert!(xml.contains("<link state='down'/>") && !xml.contains("<source bridge="), "{xml}");
}
