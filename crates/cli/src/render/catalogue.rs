//! One error of each code, as text and as JSON, as users see them.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use kvm_clone_core::host::HostAddr;
use kvm_clone_core::name::{SourceName, VmName};
use kvm_clone_core::size::ByteSize;
use kvm_clone_core::{Code, Error};

use super::document::{ErrorView, json};
use super::error;
use super::paint::Paint;

/// Where the code itself makes the error, it is made by that; else it is what the engine or an agent would tell.
fn examples() -> Vec<Error> {
    let host = |error: Error| error.with("host", "beta");
    let vm = |error: Error| error.with("vm", "web1");
    vec![
        Error::internal("an image chain is empty").with("disk", "vda"),
        Error::new(Code::Configuration, "there is no setting transfer.lanes")
            .with("file", "/etc/kvm-clone/config.toml")
            .with("line", 3)
            .help("[transfer] has parallel, verify, stall_timeout"),
        host(Error::connection("the connection was refused")).transient(),
        host(vm(Error::new(Code::VmNotFound, "there is no machine web1 on beta"))),
        host(vm(Error::new(Code::VmExists, "machine web1 exists already on beta"))),
        host(Error::insufficient(format!(
            "pool default has {} free, {} are needed",
            ByteSize(1 << 30),
            ByteSize(5 << 30)
        )))
        .with("pool", "default")
        .with("needed", 5u64 << 30),
        host(Error::transfer("lane agent 3 died")).transient(),
        "local".parse::<VmName>().err().or_else(|| "-web".parse::<VmName>().err()).unwrap(),
        Error::new(Code::Cancelled, "stopped by the user").with("operation_id", "0199"),
        host(Error::libvirt("the backup job of machine web1 cannot be ended")).with("virsh", "error: internal error"),
        Error::timeout("nothing moved for 120 s").with("disk", "vda").transient(),
        vm(Error::new(Code::Locked, "the machine is in use by root@ops pid 7")).transient(),
        Error::verification("image /srv/web1.qcow2 is broken: ERROR cluster 7 refcount=0 reference=1")
            .with("path", "/srv/web1.qcow2"),
        Error::unsupported("disk vdb is shared with other machines")
            .with("disk", "vdb")
            .help("--exclude vdb leaves it out"),
        vm(Error::conflict("machine web1 was started while it was copied (it is running)")),
        host(Error::new(Code::UndoFailed, "staging files are left on beta"))
            .with("left", "/images/.kvm-clone-0199-vda.staging"),
    ]
}

#[test]
fn each_code_says_what_where_and_what_next() {
    let mut shown = String::new();
    for (error, code) in examples().iter().zip(Code::ALL) {
        assert_eq!(error.code, *code);
        assert!(!error.context.is_empty() && !error.ways_out().is_empty(), "{code}");
        let mut document = serde_json::to_value(ErrorView::now(error)).unwrap();
        document["timestamp"] = "2030-01-02T03:04:05Z".into();
        let text = error::text(error, Paint { on: false });
        write!(shown, "exit {}\n{text}\n{}\n", code.exit_status(), json(&document).unwrap()).unwrap();
    }
    assert_eq!(examples().len(), Code::ALL.len());
    insta::assert_snapshot!("catalogue", shown);
}

#[test]
fn what_cannot_be_a_name_or_a_host_says_so() {
    for error in ["a b".parse::<HostAddr>().unwrap_err(), "".parse::<SourceName>().unwrap_err()] {
        assert_eq!(error.code, Code::Validation);
        assert!(!error.ways_out().is_empty());
    }
}
