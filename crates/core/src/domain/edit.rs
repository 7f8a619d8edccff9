//! Changes to the text of a definition, collected first and applied together.

use std::ops::Range;

use super::tree::Element;
use crate::error::{Error, Result};

/// Changes to one text. Parts that no change names stay as they are, byte for byte.
pub(crate) struct Edits<'a> {
    source: &'a str,
    changes: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        Self { source, changes: Vec::new() }
    }

    fn change(&mut self, range: Range<usize>, text: impl Into<String>) {
        self.changes.push((range, text.into()));
    }

    /// Gives an attribute this value, adding it where it is missing.
    pub(crate) fn set_attribute(&mut self, element: &Element, name: &str, value: &str) {
        match element.attribute(name) {
            Some(attribute) => self.change(attribute.value_span.clone(), escape(value)),
            None => self.change(element.name_end..element.name_end, format!(" {name}='{}'", escape(value))),
        }
    }

    /// Takes an attribute away, if it is there.
    pub(crate) fn remove_attribute(&mut self, element: &Element, name: &str) {
        if let Some(attribute) = element.attribute(name) {
            self.change(attribute.span.clone(), "");
        }
    }

    /// Makes this text the whole content of an element.
    pub(crate) fn set_text(&mut self, element: &Element, text: &str) {
        match &element.inner {
            Some(inner) => self.change(inner.clone(), escape(text)),
            None => self.open_up(element, &escape(text)),
        }
    }

    /// Takes an element away, with the line it stood on.
    pub(crate) fn remove(&mut self, element: &Element) {
        let before = self.source.get(..element.span.start).unwrap_or_default();
        let unindented = before.trim_end_matches([' ', '\t']);
        let start = match unindented.strip_suffix('\n') {
            Some(line) => line.strip_suffix('\r').unwrap_or(line).len(),
            None => element.span.start,
        };
        self.change(start..element.span.end, "");
    }

    /// Puts other XML in the place of an element.
    pub(crate) fn replace(&mut self, element: &Element, xml: &str) {
        self.change(element.span.clone(), xml);
    }

    /// Puts XML on a line of its own after an element.
    pub(crate) fn insert_after(&mut self, element: &Element, xml: &str) {
        let line = self.on_new_line(&self.indent(element), xml);
        self.change(element.span.end..element.span.end, line);
    }

    /// Puts XML on a line of its own as the last child of an element.
    pub(crate) fn append(&mut self, parent: &Element, xml: &str) {
        let own = self.indent(parent);
        let line = self.on_new_line(&format!("{own}  "), xml);
        match &parent.inner {
            Some(inner) => {
                let content = self.source.get(inner.clone()).unwrap_or_default();
                let end = inner.start + content.trim_end().len();
                let tail = if content.ends_with(char::is_whitespace) { "" } else { &format!("\n{own}") };
                self.change(end..end, format!("{line}{tail}"));
            }
            None => self.open_up(parent, &format!("{line}\n{own}")),
        }
    }

    /// Turns `<x/>` into `<x>content</x>`.
    fn open_up(&mut self, element: &Element, content: &str) {
        let name = self.source.get(element.span.start + 1..element.name_end).unwrap_or_default();
        let end = element.span.end;
        self.change(end.saturating_sub(2)..end, format!(">{content}</{name}>"));
    }

    /// The white space before an element that begins its line.
    fn indent(&self, element: &Element) -> String {
        let before = self.source.get(..element.span.start).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        line.chars().take_while(|c| *c == ' ' || *c == '\t').collect()
    }

    fn on_new_line(&self, indent: &str, xml: &str) -> String {
        xml.lines().map(|line| format!("\n{indent}{line}")).collect()
    }

    /// The text with all changes made. A change inside a part that another one takes away is moot.
    pub(crate) fn apply(mut self) -> Result<String> {
        self.changes.sort_by_key(|(range, _)| (range.start, !range.is_empty(), std::cmp::Reverse(range.end)));
        let mut result = String::with_capacity(self.source.len() + 1024);
        let mut last = 0..0;
        for (range, text) in &self.changes {
            if range.start < last.end {
                if range.end <= last.end && *range != last {
                    continue;
                }
                return Err(Error::internal("two changes of a definition overlap"));
            }
            result.push_str(self.source.get(last.end..range.start).unwrap_or_default());
            result.push_str(text);
            last = range.clone();
        }
        result.push_str(self.source.get(last.end..).unwrap_or_default());
        Ok(result)
    }
}

/// Text that stands for itself both between tags and in either kind of quotes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\n' | '\r' | '\t' => escaped.push_str(&format!("&#{};", u32::from(c))),
            other => escaped.push(other),
        }
    }
    escaped
}
