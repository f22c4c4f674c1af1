//! Patterns over paths, taken apart into components, so that a walk knows at every directory whether a match can be below.
//!
//! `globset` means the same by its patterns, which the tests here rely on. It is not used because it brings a regular
//! expression engine, a third of the whole binary, and panics on patterns that are too much for it.

use crate::fail::{Fail, Result};

/// Longest pattern, in bytes.
const LONGEST: usize = 4096;
/// Most alternatives that braces may stand for, all combinations counted.
const ALTERNATIVES: usize = 256;

/// Most braces, one after another and within one another: each is a level of recursion.
const BRACES: usize = 32;

/// One character of a component, or what may stand for any number of them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// `?`
    Any,
    /// `*`
    Many,
    /// `[a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// One component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Component {
    /// `**`: any number of components; at the end of a pattern at least one.
    Across,
    One(Vec<Token>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pattern {
    /// The components before the first one with a wildcard, as they are written.
    pub(super) base: String,
    alternatives: Vec<Vec<Component>>,
}

/// How far each alternative has come at a directory: numbers of an alternative and of its next component.
pub(super) type Progress = Vec<(u16, u16)>;

fn malformed(why: &str) -> Fail {
    Fail::invalid(format!("the pattern is malformed: {why}"))
}

impl Pattern {
    /// Takes an absolute pattern apart.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            return Err(Fail::invalid(format!("the pattern is longer than {LONGEST} bytes")));
        }
        let Some(text) = text.strip_prefix('/') else {
            return Err(Fail::invalid("the pattern is not absolute"));
        };
        if text.contains('\0') {
            return Err(malformed("it contains a NUL byte"));
        }
        // The last component names what is looked for, even without a wildcard.
        let first_wildcard = text.find(['*', '?', '[', ']', '{', '}', '\\']).unwrap_or(text.len());
        let split = text[..first_wildcard].rfind('/').map_or(0, |slash| slash + 1);
        let (base, rest) = text.split_at(split);
        let base = format!("/{}", base.trim_end_matches('/'));
        let mut expanded = Vec::new();
        expand("", rest, 0, &mut expanded)?;
        let alternatives: Result<Vec<_>> = expanded.iter().map(|text| components(text)).collect();
        let mut alternatives = alternatives?;
        alternatives.retain(|components| !components.is_empty());
        if base.split('/').any(|component| component == "..") {
            return Err(malformed("it contains .."));
        }
        Ok(Self { base, alternatives })
    }

    /// Where a walk begins.
    pub(super) fn start(&self) -> Progress {
        let mut progress = Progress::new();
        for alternative in 0..self.alternatives.len() {
            // At most [`ALTERNATIVES`].
            self.reach(&mut progress, u16::try_from(alternative).unwrap_or(u16::MAX), 0);
        }
        progress
    }

    /// Adds a position, and the ones that are reached from it without a component.
    fn reach(&self, progress: &mut Progress, alternative: u16, mut position: u16) {
        let components = &self.alternatives[usize::from(alternative)];
        loop {
            if !progress.contains(&(alternative, position)) {
                progress.push((alternative, position));
            }
            let last = usize::from(position) + 1 >= components.len();
            match components.get(usize::from(position)) {
                Some(Component::Across) if !last => position += 1,
                _ => return,
            }
        }
    }

    /// Takes one step into `name`: whether it matches, and from where to go on below it. Nothing matches below it when
    /// that is empty.
    pub(super) fn step(&self, progress: &Progress, name: &[u8]) -> (bool, Progress) {
        let name = String::from_utf8_lossy(name);
        let mut matches = false;
        let mut below = Progress::new();
        for (alternative, position) in progress {
            let components = &self.alternatives[usize::from(*alternative)];
            let last = usize::from(*position) + 1 == components.len();
            match &components[usize::from(*position)] {
                Component::Across => {
                    matches |= last;
                    self.reach(&mut below, *alternative, *position);
                }
                Component::One(tokens) => {
                    if component_matches(tokens, &name) {
                        matches |= last;
                        if !last {
                            self.reach(&mut below, *alternative, position + 1);
                        }
                    }
                }
            }
        }
        (matches, below)
    }
}

/// Writes out every combination of what braces stand for. `rest` is not written out yet, `done` stands before it, `level`
/// counts the braces on the way here.
fn expand(done: &str, rest: &str, level: usize, out: &mut Vec<String>) -> Result<()> {
    let mut done = done.to_owned();
    let mut at = 0;
    while let Some(character) = rest[at..].chars().next() {
        let mut length = character.len_utf8();
        match character {
            '\\' => {
                let escaped = rest[at + 1..].chars().next();
                length += escaped.ok_or_else(|| malformed("nothing follows the last \\"))?.len_utf8();
            }
            '[' => length = class_length(&rest[at..])?,
            '}' => return Err(malformed("a } has no {")),
            '{' if level == BRACES => return Err(malformed("too many braces")),
            '{' => {
                let (choices, behind) = choices(&rest[at + 1..])?;
                let mut written = Vec::new();
                for choice in choices {
                    expand("", choice, level + 1, &mut written)?;
                }
                for written in written {
                    expand(&format!("{done}{written}"), behind, level + 1, out)?;
                }
                return Ok(());
            }
            _ => {}
        }
        done.push_str(&rest[at..at + length]);
        at += length;
    }
    if out.len() == ALTERNATIVES {
        return Err(Fail::invalid(format!("the pattern stands for more than {ALTERNATIVES} alternatives")));
    }
    out.push(done);
    Ok(())
}

/// Bytes of the class at the beginning of `text`, brackets included. A `]` that comes first is meant literally.
fn class_length(text: &str) -> Result<usize> {
    let inner = text.strip_prefix('[').unwrap_or(text);
    let negated = inner.starts_with(['!', '^']);
    let first = 1 + usize::from(negated);
    let skip = first + usize::from(text[first..].starts_with(']'));
    let end = text[skip..].find(']').ok_or_else(|| malformed("a [ has no ]"))?;
    Ok(skip + end + 1)
}

/// The choices within braces, whose opening is before `text`, and what is behind the closing one.
fn choices(text: &str) -> Result<(Vec<&str>, &str)> {
    let (mut depth, mut from, mut at) = (0usize, 0, 0);
    let mut choices = Vec::new();
    while let Some(character) = text[at..].chars().next() {
        match character {
            '\\' => at += text[at + 1..].chars().next().map_or(0, char::len_utf8),
            '[' => at += class_length(&text[at..])? - 1,
            '{' => depth += 1,
            '}' if depth == 0 => {
                choices.push(&text[from..at]);
                return Ok((choices, &text[at + 1..]));
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                choices.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
        at += character.len_utf8();
    }
    Err(malformed("a { has no }"))
}

/// Components of a pattern without braces.
fn components(text: &str) -> Result<Vec<Component>> {
    let parts = text.split('/').filter(|part| !part.is_empty() && *part != ".");
    let mut components = Vec::new();
    for part in parts {
        let component = match part {
            ".." => return Err(malformed("it contains ..")),
            "**" => Component::Across,
            other => Component::One(tokens(other)?),
        };
        // Twice in a row says the same, except at the end, where it asks for one component more.
        components.push(component);
    }
    Ok(components)
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let mut length = character.len_utf8();
        match character {
            '*' if tokens.last() == Some(&Token::Many) => {}
            '*' => tokens.push(Token::Many),
            '?' => tokens.push(Token::Any),
            '[' => {
                length = class_length(rest)?;
                tokens.push(class(&rest[1..length - 1])?);
            }
            '\\' => {
                let escaped =
                    rest[1..].chars().next().ok_or_else(|| malformed("nothing follows the last \\"))?;
                length += escaped.len_utf8();
                tokens.push(Token::Literal(escaped));
            }
            other => tokens.push(Token::Literal(other)),
        }
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// A class from what is within its brackets.
fn class(inner: &str) -> Result<Token> {
    let stripped = inner.strip_prefix(['!', '^']);
    let characters: Vec<char> = stripped.unwrap_or(inner).chars().collect();
    let mut ranges = Vec::new();
    let mut rest = characters.as_slice();
    while let [first, tail @ ..] = rest {
        match tail {
            ['-', last, behind @ ..] => {
                if first > last {
                    return Err(malformed("a range ends before it begins"));
                }
                ranges.push((*first, *last));
                rest = behind;
            }
            _ => {
                ranges.push((*first, *first));
                rest = tail;
            }
        }
    }
    Ok(Token::Class { negated: stripped.is_some(), ranges })
}

/// Whether `name` is one of those that `tokens` stand for. Takes time proportional to the product of their lengths at most.
fn component_matches(tokens: &[Token], name: &str) -> bool {
    let (mut tokens, mut name) = (tokens, name);
    // Behind the last `*`, and what it has not taken yet.
    let mut retry: Option<(&[Token], &str)> = None;
    loop {
        let mut characters = name.chars();
        let next = characters.next();
        match (tokens.split_first(), next) {
            (Some((Token::Many, behind)), _) => {
                retry = Some((behind, name));
                tokens = behind;
                continue;
            }
            (Some((token, behind)), Some(character)) if token.is(character) => {
                (tokens, name) = (behind, characters.as_str());
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        // The last `*` takes one character more.
        let Some((behind, left)) = retry else { return false };
        let mut characters = left.chars();
        if characters.next().is_none() {
            return false;
        }
        (tokens, name) = (behind, characters.as_str());
        retry = Some((tokens, name));
    }
}

impl Token {
    fn is(&self, character: char) -> bool {
        match self {
            Self::Literal(literal) => *literal == character,
            Self::Any => true,
            Self::Many => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (first..=last).contains(&&character)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use globset::GlobBuilder;
    use proptest::prelude::*;

    fn matches(pattern: &str, path: &str) -> Result<bool> {
        let pattern = Pattern::parse(pattern)?;
        let Some(below) = path.strip_prefix(pattern.base.trim_end_matches('/')) else { return Ok(false) };
        let Some(below) = below.strip_prefix('/') else { return Ok(false) };
        let (mut matched, mut progress) = (false, pattern.start());
        for name in below.split('/') {
            (matched, progress) = pattern.step(&progress, name.as_bytes());
        }
        Ok(matched)
    }

    #[test]
    fn characters_count_and_not_bytes() {
        assert!(matches("/?", "/ä").unwrap());
        assert!(matches("/[ä-ö]x", "/öx").unwrap());
        assert!(!matches("/[!ä]", "/ä").unwrap());
        assert!(matches("/*.{ä,ö}", "/a.ö").unwrap());
    }

    #[test]
    fn braces_reach_across_components() {
        for path in ["/a/b", "/c", "/a/d/e"] {
            assert!(matches("/{a/{b,d/e},c}", path).unwrap(), "{path}");
        }
        assert!(!matches("/{a/{b,d/e},c}", "/a/c").unwrap());
        assert!(matches("/x{,y}", "/x").unwrap() && matches("/x{,y}", "/xy").unwrap());
        assert!(matches("/[{]a,b}", "/{a,b}").is_err(), "the brace is closed and was not opened");
        assert!(matches("/\\{a,b\\}", "/{a,b}").unwrap());
        assert!(matches("/[]]", "/]").unwrap() && matches("/[!]]", "/a").unwrap());
    }

    #[test]
    fn mistakes_are_named() {
        for pattern in
            ["", "a", "/[", "/[]", "/{a", "/a}", "/a\\", "/[z-a]", "/../*", "/*/..", "/\0*", "/{a,..}/b"]
        {
            assert!(Pattern::parse(pattern).is_err(), "{pattern:?}");
        }
        assert!(Pattern::parse(&format!("/{}", "{a,b}".repeat(9))).is_err(), "512 alternatives");
        assert!(Pattern::parse(&format!("/{}", "{".repeat(2000))).is_err());
        assert!(Pattern::parse(&format!("/{}", "{a}".repeat(1000))).is_err());
        assert!(Pattern::parse(&format!("/{}", "[a]".repeat(1000))).is_ok());
        assert!(Pattern::parse(&format!("/{}{}", "{".repeat(2000), "}".repeat(2000))).is_err());
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = format!("/{}b", "*a".repeat(1000));
        assert!(!matches(&pattern, &format!("/{}", "a".repeat(4000))).unwrap());
    }

    /// What the library makes of it; `None` if it refuses.
    fn oracle(pattern: &str, path: &str) -> Option<bool> {
        let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build().ok()?;
        Some(glob.compile_matcher().is_match(path))
    }

    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[ab]{1,2}",
            2 => Just("*".to_owned()),
            1 => Just("**".to_owned()),
            2 => "[ab?*]{1,3}".prop_filter("not across", |part| !part.contains("**")),
            1 => "\\[[!]?[a-c]\\]",
            1 => "\\{[ab],[ab]{1,2}\\}[ab*]?",
            1 => "\\{a/b,[ab]\\}",
            1 => "\\\\[ab*]",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn the_library_agrees(
            parts in proptest::collection::vec(part(), 1..5),
            path in proptest::collection::vec("[abc*]{1,3}", 1..5),
        ) {
            let (pattern, path) = (format!("/{}", parts.join("/")), format!("/{}", path.join("/")));
            prop_assert_eq!(matches(&pattern, &path).ok(), oracle(&pattern, &path), "{} {}", pattern, path);
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern in "[/*?\\[\\]{},!^\\-\\\\a\u{e4}]{0,24}", name in "[a\u{e4}]{0,4}") {
            if let Ok(pattern) = Pattern::parse(&format!("/{pattern}")) {
                let _ = pattern.step(&pattern.start(), name.as_bytes());
            }
        }
    }
}
