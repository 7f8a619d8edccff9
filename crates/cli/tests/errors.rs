//! The page about errors says what the code does.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kvm_clone_core::Code;
use kvm_clone_core::retry::can_pass;

const BEGIN: &str = "<!-- codes -->\n";
const END: &str = "<!-- end of codes -->\n";

/// The table as Markdown.
fn table() -> String {
    let row = |code: &Code| {
        let again = if can_pass(*code) { "yes" } else { "never" };
        let (number, kind, exit, when) = (code.number(), code.kind(), code.exit_status(), code.when());
        format!("| {number} | `{kind}` | {exit} | {again} | {when} |\n")
    };
    let head = "| code | kind | exit | again | when |\n|---|---|---|---|---|\n";
    std::iter::once(head.to_owned()).chain(Code::ALL.iter().map(row)).collect()
}

/// With `KVM_CLONE_WRITE_DOCS` set the page is written instead, which is what `make docs` does.
#[test]
fn the_page_of_errors_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/errors.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (there, tail) = rest.split_once(END).unwrap();
    if std::env::var_os("KVM_CLONE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{}{END}{tail}", table())).unwrap();
    } else {
        assert_eq!(there, table(), "make docs writes the page anew");
    }
}
