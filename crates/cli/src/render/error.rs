//! An error as text: what failed and why, the evidence, and what to do next.

use kvm_clone_core::Error;

use super::harmless;
use super::paint::Paint;

/// The error for a reader.
pub(super) fn text(error: &Error, paint: Paint) -> String {
    let mut lines = vec![format!("{} {} ({})", paint.bad("error:"), harmless(&error.message), error.code)];
    for (name, value) in &error.context {
        let value = harmless(value);
        // Evidence that the sentence holds already is not said twice.
        if !error.message.contains(value.as_str()) {
            lines.push(format!("  {name}: {}", value.replace('\n', "\n    ")));
        }
    }
    let help = paint.good("help:");
    match error.ways_out().as_slice() {
        [one] => lines.push(format!("{help} {one}")),
        several => {
            lines.extend(several.iter().enumerate().map(|(index, hint)| format!("{help} {}. {hint}", index + 1)));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_what_next() {
        let error =
            Error::connection("alpha is away").with("host", "alpha").with("ssh", "line\u{1b}[2J\nmore").help("wait");
        let shown = text(&error, Paint { on: false });
        assert_eq!(shown, "error: alpha is away (1002 connection)\n  ssh: line\u{fffd}[2J\n    more\nhelp: wait");
        let shown = text(&error.help("go"), Paint { on: false });
        assert!(shown.ends_with("help: 1. wait\nhelp: 2. go"), "{shown}");
    }
}
