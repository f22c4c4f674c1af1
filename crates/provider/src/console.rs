//! Lines of a console, bounded and cleaned: what is in it may have been written by whoever the sandbox is for.

use crate::{CONSOLE_BYTES, CONSOLE_LINES};

/// The last `lines` lines of `text`, the end of a console, oldest first. `cut`: it does not begin with the console's first
/// byte, so what looks like its first line may be a part of one, and is left out.
pub fn console_lines(text: &[u8], cut: bool, lines: u32) -> Vec<String> {
    let most = lines.min(CONSOLE_LINES) as usize;
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let all = text.split(|byte| *byte == b'\n');
    let whole = all.clone().count() - usize::from(cut);
    let mut room = CONSOLE_BYTES;
    let mut kept: Vec<String> = Vec::new();
    for line in all.rev().take(whole.min(most)) {
        let line: String =
            String::from_utf8_lossy(line).chars().filter(|c| !c.is_control() || *c == '\t').collect();
        let Some(left) = room.checked_sub(line.len()) else { break };
        room = left;
        kept.push(line);
    }
    kept.reverse();
    if kept == [""] { Vec::new() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_come_oldest_first() {
        assert_eq!(console_lines(b"a\nb\nc\n", false, 2), ["b", "c"]);
        assert_eq!(console_lines(b"a\nb\nc", false, 9), ["a", "b", "c"]);
        assert_eq!(console_lines(b"a\n\nc\n", false, 9), ["a", "", "c"]);
        for nothing in [&b""[..], b"\n"] {
            assert_eq!(console_lines(nothing, false, 9), [""; 0]);
        }
        assert_eq!(console_lines(b"a\nb\n", false, 0), [""; 0]);
    }

    #[test]
    fn a_line_that_was_cut_is_left_out() {
        assert_eq!(console_lines(b"rt of one\nb\n", true, 9), ["b"]);
        assert_eq!(console_lines(b"one long line", true, 9), [""; 0]);
    }

    #[test]
    fn nothing_in_it_can_reach_a_terminal_or_grow() {
        assert_eq!(console_lines(b"\x1b[31mred\r\n\ttab\xff\n", false, 9), ["[31mred", "\ttab\u{fffd}"]);
        let many = "x\n".repeat(CONSOLE_LINES as usize + 5);
        assert_eq!(console_lines(many.as_bytes(), false, u32::MAX).len(), CONSOLE_LINES as usize);
        // Each of these bytes becomes three.
        let wide = [&vec![0xff; CONSOLE_BYTES / 2][..], b"\nlast"].concat();
        assert_eq!(console_lines(&wide, false, 9), ["last"]);
    }
}
