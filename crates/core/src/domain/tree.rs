//! A definition as a tree that remembers where in the text each part stands.
//!
//! The tree is only read. Changes are made to the text itself ([`super::edit`]), so every byte that no rule speaks of
//! stays as it was: comments, quotes, order, prefixes, white space.

use std::ops::Range;

use xot::{Node, SpanInfo, SpanInfoKey, Value, Xot};

use super::limits::{self, MAX_DEPTH, unreadable};
use crate::error::Result;

/// One element, with its place in the text.
#[derive(Debug, Clone)]
pub(crate) struct Element {
    /// The name without its prefix.
    pub(crate) name: String,
    /// The namespace; empty for everything that libvirt itself defines.
    pub(crate) namespace: String,
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) children: Vec<Element>,
    /// The text directly inside, without that of child elements.
    pub(crate) text: String,
    /// From `<` of the start tag to behind `>` of the end tag.
    pub(crate) span: Range<usize>,
    /// Behind the name in the start tag, where an attribute can be put.
    pub(crate) name_end: usize,
    /// Between the tags; nothing for `<x/>`.
    pub(crate) inner: Option<Range<usize>>,
}

/// One attribute, with its place in the text.
#[derive(Debug, Clone)]
pub(crate) struct Attribute {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) value: String,
    /// From the white space before the name to behind the closing quote.
    pub(crate) span: Range<usize>,
    /// Between the quotes.
    pub(crate) value_span: Range<usize>,
}

impl Element {
    /// Reads a whole document, within the limits of [`limits::check`].
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        limits::check(xml)?;
        let mut xot = Xot::new();
        let (document, spans) = xot.parse_with_span_info(xml).map_err(unreadable)?;
        let root = xot.document_element(document).map_err(unreadable)?;
        Reader { xot: &xot, spans: &spans, xml }.element(root, 0)
    }

    /// Whether this is libvirt's own element of that name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.namespace.is_empty() && self.name == name
    }

    /// libvirt's child elements of that name, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.is(name))
    }

    /// The first child of that name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.is(name))
    }

    /// The element at the end of a path of names.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// The value of an attribute that has no namespace.
    pub(crate) fn attr(&self, name: &str) -> Option<&str> {
        self.attribute(name).map(|attribute| attribute.value.as_str())
    }

    /// The attribute of that name that has no namespace.
    pub(crate) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.namespace.is_empty() && attribute.name == name)
    }

    /// The attribute at the end of a path of names.
    pub(crate) fn attr_at(&self, path: &[&str], name: &str) -> Option<&str> {
        self.at(path)?.attr(name)
    }

    /// The text without the white space around it.
    pub(crate) fn trimmed(&self) -> &str {
        self.text.trim()
    }

    /// The text at the end of a path of names, if there is any.
    pub(crate) fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path).map(Element::trimmed).filter(|text| !text.is_empty())
    }

    /// This element and all below it, in document order.
    pub(crate) fn descendants(&self) -> Vec<&Element> {
        let mut found = vec![self];
        for child in &self.children {
            found.extend(child.descendants());
        }
        found
    }
}

/// XML 1.0 allows no control characters but white space; our parser takes them where they are written as references.
/// They would reach the user's terminal in a path or a name.
fn printable(text: &str) -> Result<&str> {
    let is_forbidden = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if text.contains(is_forbidden) {
        return Err(unreadable("it holds control characters"));
    }
    Ok(text)
}

struct Reader<'a> {
    xot: &'a Xot,
    spans: &'a SpanInfo,
    xml: &'a str,
}

impl Reader<'_> {
    fn span(&self, key: SpanInfoKey) -> Result<Range<usize>> {
        self.spans.get(key).map(|span| span.range()).ok_or_else(|| unreadable("a part of it has no place in the text"))
    }

    fn element(&self, node: Node, depth: usize) -> Result<Element> {
        if depth > MAX_DEPTH {
            return Err(unreadable("its elements are nested too deeply"));
        }
        let (name, namespace) = match self.xot.node_name(node) {
            Some(name) => self.xot.name_ns_str(name),
            None => return Err(unreadable("an element has no name")),
        };
        let tag = self.span(SpanInfoKey::ElementStart(node))?;
        let end = self.span(SpanInfoKey::ElementEnd(node))?;
        let is_empty = self.xml.get(end.clone()) == Some("/>");
        let inner = (!is_empty).then(|| self.tag_end(tag.end)..end.start);
        let start = self.begins(&tag, |c| c == '<')?;
        let mut element = Element {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            attributes: self.attributes(node)?,
            children: Vec::new(),
            text: String::new(),
            span: start..end.end,
            name_end: tag.end,
            inner,
        };
        for child in self.xot.children(node) {
            match self.xot.value(child) {
                Value::Element(_) => element.children.push(self.element(child, depth + 1)?),
                Value::Text(text) => element.text.push_str(printable(text.get())?),
                _ => {}
            }
        }
        Ok(element)
    }

    fn attributes(&self, node: Node) -> Result<Vec<Attribute>> {
        let mut attributes = Vec::new();
        for (id, value) in self.xot.attributes(node).iter() {
            let (name, namespace) = self.xot.name_ns_str(id);
            let value_span = self.span(SpanInfoKey::AttributeValue(node, id))?;
            let white = self.begins(&self.span(SpanInfoKey::AttributeName(node, id))?, char::is_whitespace)?;
            let before = self.xml.get(..white).unwrap_or_default();
            attributes.push(Attribute {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                value: printable(value)?.to_owned(),
                span: before.trim_end().len()..value_span.end + 1,
                value_span,
            });
        }
        Ok(attributes)
    }

    /// Where the one character stands that comes before a name. The parser takes `<:name/>` for a name without a prefix, and
    /// gives the place behind the colon; "Namespaces in XML", section 4, allows no such name, and libvirt writes none.
    fn begins(&self, name: &Range<usize>, allowed: impl Fn(char) -> bool) -> Result<usize> {
        let before = self.xml.get(..name.start).and_then(|text| text.char_indices().next_back());
        match before {
            Some((at, c)) if allowed(c) => Ok(at),
            _ => Err(unreadable("a name begins with a colon")),
        }
    }

    /// Behind the `>` of the start tag whose name ends at `from`; values in quotes may hold `>`.
    fn tag_end(&self, from: usize) -> usize {
        let mut quote = None;
        for (at, byte) in self.xml.bytes().enumerate().skip(from) {
            match quote {
                Some(open) if open == byte => quote = None,
                Some(_) => {}
                None if byte == b'>' => return at + 1,
                None if byte == b'"' || byte == b'\'' => quote = Some(byte),
                None => {}
            }
        }
        self.xml.len()
    }
}
