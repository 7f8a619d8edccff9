//! Arguments handed to qemu as they are: "QEMU command-line passthrough" (drvqemu). libvirt looks at none of them, so what
//! they stand on is found here, and treated as the elements are that libvirt has for it.

mod ground;
mod option;

use super::Domain;
use super::refuse::cannot;
use super::tree::Element;
use crate::error::Error;
use ground::{Ground, grounds};
use option::{Argument, read};

/// The namespace of arguments and settings for qemu.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// What is carried as it is, in words.
pub(super) fn warning(domain: &Domain) -> Option<String> {
    let is_extended = domain.root.children.iter().any(|element| element.namespace == QEMU);
    is_extended
        .then(|| "arguments and settings for qemu itself are carried as they are; they must fit the target".to_owned())
}

/// Files that qemu reads because an argument says so, each with what it is: the target must have them.
pub(super) fn files(domain: &Domain) -> Vec<(&'static str, String)> {
    let found = arguments(domain).into_iter().flat_map(|argument| grounds(&argument));
    let files = found.filter_map(|ground| match ground {
        Ground::File(what, path) => Some((what, path)),
        Ground::Host(_) => None,
    });
    files.collect()
}

/// Arguments that stand on what only the source's host has, or what two machines would share.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let mut errors = Vec::new();
    for argument in arguments(domain) {
        let found = grounds(&argument).into_iter().find_map(|ground| match ground {
            Ground::Host(what) => Some(what),
            Ground::File(..) => None,
        });
        let Some(what) = found else { continue };
        let shown = argument.shown();
        let help =
            "Describe it in the definition instead of in <qemu:commandline>, or remove it from the source machine";
        let error = cannot(format!("an argument for qemu stands on {what} of the source's host: {shown}"), help);
        errors.push(error.with("argument", shown));
    }
    errors
}

fn arguments(domain: &Domain) -> Vec<Argument> {
    let is_qemus = |element: &&Element, name: &str| element.namespace == QEMU && element.name == name;
    let lines = domain.root.children.iter().filter(|element| is_qemus(element, "commandline"));
    let words = lines.flat_map(|line| &line.children).filter(|element| is_qemus(element, "arg"));
    read(&words.filter_map(|word| word.attr("value")).collect::<Vec<_>>())
}
