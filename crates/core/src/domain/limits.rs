//! What a definition may be before it is parsed at all.
//!
//! libvirt's definitions come from another host, so they are looked at as hostile: entities that grow without end,
//! nesting that eats the stack and elements with a hundred thousand attributes are refused by one linear scan.

use crate::error::{Error, Result};

/// The longest definition that is read: libvirt's own are a few kilobytes.
const MAX_BYTES: usize = 1 << 20;
/// The deepest nesting: libvirt's own definitions reach about ten.
pub(crate) const MAX_DEPTH: usize = 64;
/// The most attributes that one element may have; the parser's duplicate check is quadratic in them.
const MAX_ATTRIBUTES: usize = 64;

/// An error about XML that cannot be used.
pub(crate) fn unreadable(why: impl std::fmt::Display) -> Error {
    Error::libvirt(format!("the XML of libvirt cannot be used: {why}"))
        .help("Look at it on its host with: virsh dumpxml --inactive VM")
}

/// Refuses what is too long, too deep, or declares a document type; says nothing about well-formedness.
pub(crate) fn check(xml: &str) -> Result<()> {
    if xml.len() > MAX_BYTES {
        return Err(unreadable(format!("it has {} bytes, more than {MAX_BYTES}", xml.len())));
    }
    let mut depth = 0usize;
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        let markup = rest.split_at(start).1;
        let tail = if markup.starts_with("<!--") {
            after(markup, "-->")
        } else if markup.starts_with("<![CDATA[") {
            after(markup, "]]>")
        } else if markup.starts_with("<!") {
            return Err(unreadable("it declares a document type or entities, which libvirt never does"));
        } else if markup.starts_with("<?") {
            after(markup, "?>")
        } else if markup.starts_with("</") {
            depth = depth.saturating_sub(1);
            after(markup, ">")
        } else {
            let tag = start_tag(markup)?;
            depth += usize::from(tag.opens);
            tag.tail
        };
        if depth > MAX_DEPTH {
            return Err(unreadable(format!("its elements are nested deeper than {MAX_DEPTH}")));
        }
        let Some(tail) = tail else { break };
        rest = tail;
    }
    Ok(())
}

/// What follows the first `end`; nothing if the markup is not closed, which the parser then reports with its place.
fn after<'a>(text: &'a str, end: &str) -> Option<&'a str> {
    text.split_once(end).map(|(_, tail)| tail)
}

struct StartTag<'a> {
    /// Whether an end tag will follow.
    opens: bool,
    tail: Option<&'a str>,
}

/// Reads over one start tag, whose attribute values may hold `>`.
fn start_tag(markup: &str) -> Result<StartTag<'_>> {
    let mut quote = None;
    let mut attributes = 0;
    for (at, byte) in markup.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => {
                quote = Some(byte);
                attributes += 1;
                if attributes > MAX_ATTRIBUTES {
                    return Err(unreadable(format!("an element has more than {MAX_ATTRIBUTES} attributes")));
                }
            }
            (None, b'>') => {
                let (tag, tail) = markup.split_at(at + 1);
                return Ok(StartTag { opens: !tag.ends_with("/>"), tail: Some(tail) });
            }
            (None, _) => {}
        }
    }
    Ok(StartTag { opens: true, tail: None })
}
