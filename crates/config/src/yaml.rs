//! YAML text to a tree that knows its lines. Scalars keep their spelling: whether `1` is a number or a text is for the
//! key to say, not for the file.
//!
//! The tree is bounded: nesting, and nodes after aliases are expanded.

use granit_parser::{Event, Options, Parser, ScalarStyle};
use std::collections::HashMap;

/// Deepest nesting. The deepest key has four parts.
const DEPTH: usize = 32;
/// Most nodes, aliases expanded. A file that sets everything has a few hundred.
const NODES: usize = 20_000;

/// A node and the line it starts on (from 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) data: Data,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    /// Text, and whether it stands without quotes.
    Scalar(String, bool),
    List(Vec<Node>),
    /// Keys in the order written; a key may occur twice here.
    Map(Vec<(Name, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Why a text is no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// `None` for a text without content.
    pub(crate) root: Option<Node>,
    /// Line of a second document, which is not read.
    pub(crate) another: Option<usize>,
}

impl Node {
    /// An unquoted nothing: `key:`, `key: ~`, `key: null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    fn size(&self) -> usize {
        1 + match &self.data {
            Data::Scalar(..) => 0,
            Data::List(items) => items.iter().map(Self::size).sum(),
            Data::Map(entries) => entries.iter().map(|(_, node)| 1 + node.size()).sum(),
        }
    }
}

/// A collection whose end has not come yet.
struct Open {
    line: usize,
    anchor: usize,
    items: Vec<Node>,
    map: bool,
}

/// Parses the first document of `text`.
pub(crate) fn parse(text: &str) -> Result<Document, Malformed> {
    let mut options = Options::default();
    options.block_nesting_limit = DEPTH;
    options.flow_nesting_limit = DEPTH;
    options.set_emit_comments(false);

    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Node> = HashMap::new();
    let mut root = None;
    let mut documents = 0;
    let mut nodes = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|e| Malformed { line: e.marker().line(), what: e.info() })?;
        let line = span.start.line();
        let malformed = |what: &str| Malformed { line, what: what.to_owned() };
        let (node, size) = match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents == 2 {
                    return Ok(Document { root, another: Some(line) });
                }
                continue;
            }
            Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _) => {
                if open.len() >= DEPTH {
                    return Err(malformed("nested too deeply"));
                }
                let map = matches!(event, Event::MappingStart(..));
                open.push(Open { line, anchor, items: Vec::new(), map });
                continue;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain =
                    style == ScalarStyle::Plain && !tag.is_some_and(|t| t.is_yaml_core_schema_tag("str"));
                let node = Node { line, data: Data::Scalar(text.into_owned(), plain) };
                if anchor != 0 {
                    anchors.insert(anchor, node.clone());
                }
                (node, 1)
            }
            Event::Alias(anchor) => {
                let target =
                    anchors.get(&anchor).ok_or_else(|| malformed("an alias within what it stands for"))?;
                (Node { line, ..target.clone() }, target.size())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let closed = open.pop().ok_or_else(|| malformed("an end without a start"))?;
                (closed_node(closed, &mut anchors)?, 1)
            }
            _ => continue,
        };
        nodes += size;
        if nodes > NODES {
            return Err(malformed("too many values"));
        }
        match open.last_mut() {
            Some(parent) => parent.items.push(node),
            None => root = Some(node),
        }
    }
    Ok(Document { root, another: None })
}

fn closed_node(closed: Open, anchors: &mut HashMap<usize, Node>) -> Result<Node, Malformed> {
    let data = if closed.map { Data::Map(entries(closed.items)?) } else { Data::List(closed.items) };
    let node = Node { line: closed.line, data };
    if closed.anchor != 0 {
        anchors.insert(closed.anchor, node.clone());
    }
    Ok(node)
}

/// Keys and values from a flat run of them, with `<<: *base` taken in: what is written out wins over what is merged.
fn entries(items: Vec<Node>) -> Result<Vec<(Name, Node)>, Malformed> {
    let mut entries: Vec<(Name, Node)> = Vec::with_capacity(items.len() / 2);
    let mut merged = Vec::new();
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        match key.data {
            Data::Scalar(text, true) if text == "<<" => merged.push(value),
            Data::Scalar(text, _) => entries.push((Name { line: key.line, text }, value)),
            _ => return Err(Malformed { line: key.line, what: "a key must be a word".to_owned() }),
        }
    }
    for base in merged {
        let bases = match base.data {
            Data::List(bases) => bases,
            data => vec![Node { line: base.line, data }],
        };
        for base in bases {
            let Data::Map(inherited) = base.data else {
                return Err(Malformed { line: base.line, what: "<< takes a group of keys".to_owned() });
            };
            for (name, value) in inherited {
                if !entries.iter().any(|(own, _)| own.text == name.text) {
                    entries.push((name, value));
                }
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(text: &str) -> Node {
        parse(text).unwrap().root.unwrap()
    }

    fn get<'a>(node: &'a Node, name: &str) -> &'a Node {
        let Data::Map(entries) = &node.data else { panic!("not a map") };
        &entries.iter().find(|(n, _)| n.text == name).unwrap().1
    }

    #[test]
    fn keeps_lines_and_spelling() {
        let tree = root("a: 1\nb:\n  c: 'x'\n  d: 0x1F # why\n");
        assert_eq!(get(&tree, "a").data, Data::Scalar("1".to_owned(), true));
        let b = get(&tree, "b");
        assert_eq!(*get(b, "c"), Node { line: 3, data: Data::Scalar("x".to_owned(), false) });
        assert_eq!(*get(b, "d"), Node { line: 4, data: Data::Scalar("0x1F".to_owned(), true) });
    }

    #[test]
    fn merges_and_aliases() {
        let tree = root("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\ncopy: *b\n");
        assert_eq!(get(get(&tree, "use"), "y").data, Data::Scalar("3".to_owned(), true));
        assert_eq!(get(get(&tree, "use"), "x").data, Data::Scalar("1".to_owned(), true));
        assert_eq!(get(get(&tree, "copy"), "y").data, Data::Scalar("2".to_owned(), true));
    }

    #[test]
    fn bounded() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert_eq!(parse(&bomb).unwrap_err().what, "too many values");
        assert!(parse(&"[".repeat(10_000)).is_err());
        assert!(parse(&"- ".repeat(10_000)).is_err());
        assert!(parse("a: &a [*a]").is_err());
    }

    #[test]
    fn names_the_line_of_a_mistake() {
        assert_eq!(parse("a: 1\nb: [1\nc: 2\n").unwrap_err().line, 3);
        assert_eq!(parse("a: 1\n---\nb: 1\n").unwrap().another, Some(2));
        assert_eq!(parse("").unwrap().root, None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(?s)[ -~\n\t\u{80}-\u{ff}]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_yaml_like_text_panics(parts in proptest::collection::vec(
            prop_oneof![Just("a: "), Just("- "), Just("\n"), Just("  "), Just("&x "), Just("*x"), Just("{"), Just("}"),
                Just("["), Just("]"), Just("<<: "), Just("'"), Just("\""), Just("|\n"), Just("--- "), Just("!!str "), Just(", ")], 0..40)) {
            let _ = parse(&parts.concat());
        }
    }
}
