//! From a policy to a program for the kernel's filter: a search tree over the numbers, since every call pays for its depth.

use super::policy::{Answer, Row, Test, UNKNOWN};
use libc::{
    BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter,
};
use std::collections::BTreeMap;

/// Offsets in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const OURS: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OURS: u32 = 0xc000_00b7;

/// The program for these calls. Everything else is [`UNKNOWN`]; a call in the manner of another architecture, whose numbers
/// mean something else, ends the process.
pub(super) fn compile(calls: &BTreeMap<u32, Answer>) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, OURS, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    program.extend(tree(&intervals(calls)));
    program
}

/// The whole range of numbers, cut where the answer changes: each interval begins with its number.
fn intervals(calls: &BTreeMap<u32, Answer>) -> Vec<(u32, Answer)> {
    let mut cut = vec![(0, UNKNOWN)];
    let mut push = |start: u32, answer: Answer| {
        if cut.last().is_some_and(|(last, _)| *last == start) {
            cut.pop();
        }
        if cut.last().is_none_or(|(_, last)| *last != answer) {
            cut.push((start, answer));
        }
    };
    for (number, answer) in calls {
        push(*number, *answer);
        push(number.saturating_add(1), UNKNOWN);
    }
    cut
}

fn tree(intervals: &[(u32, Answer)]) -> Vec<sock_filter> {
    match intervals {
        [] => Vec::new(),
        [(_, answer)] => leaf(*answer),
        _ => {
            let (left, right) = intervals.split_at(intervals.len() / 2);
            let (first, left, right) = (right[0].0, tree(left), tree(right));
            let mut code = match u8::try_from(left.len()) {
                Ok(over) => vec![jump(BPF_JGE, first, over, 0)],
                // Too far for a condition: over a jump without one.
                Err(_) => vec![
                    jump(BPF_JGE, first, 0, 1),
                    statement(BPF_JMP | BPF_JA, u32::try_from(left.len()).unwrap_or(u32::MAX)),
                ],
            };
            code.extend(left);
            code.extend(right);
            code
        }
    }
}

fn leaf(answer: Answer) -> Vec<sock_filter> {
    match answer {
        Answer::Allow => vec![give(libc::SECCOMP_RET_ALLOW)],
        Answer::Refuse(error) => vec![give(libc::SECCOMP_RET_ERRNO | error.unsigned_abs())],
        Answer::Depends(rows) => rows.iter().flat_map(row).collect(),
    }
}

/// Each test that fails leads to what stands behind the row.
fn row(row: &Row) -> Vec<sock_filter> {
    let answer = leaf(row.answer);
    let mut code = Vec::new();
    for (index, (argument, test)) in row.tests.iter().enumerate() {
        let rest = (row.tests.len() - index - 1) * 2 + answer.len();
        let out = u8::try_from(rest).unwrap_or(u8::MAX);
        code.push(load(ARGUMENTS + 8 * u32::from(*argument)));
        code.push(match test {
            Test::Is(value) => jump(BPF_JEQ, *value, 0, out),
            Test::HasNoneOf(bits) => jump(BPF_JSET, *bits, out, 0),
        });
    }
    code.extend(answer);
    code
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn give(answer: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, answer)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | BPF_K | test) as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::{super::policy, *};
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    struct Call {
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    }

    /// What the kernel would make of it; a panic where the kernel would refuse the program.
    fn run(program: &[sock_filter], call: &Call) -> u32 {
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |holds: bool| usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                c if c == BPF_LD | BPF_W | BPF_ABS => {
                    accumulator = match k {
                        NUMBER => call.number,
                        ARCHITECTURE => call.architecture,
                        k if k >= ARGUMENTS && (k - ARGUMENTS).is_multiple_of(8) => {
                            call.arguments[(k - ARGUMENTS) as usize / 8] as u32
                        }
                        other => panic!("load of {other}"),
                    }
                }
                c if c == BPF_JMP | BPF_JA => at += k as usize,
                c if c == BPF_JMP | BPF_K | BPF_JEQ => at += branch(accumulator == k),
                c if c == BPF_JMP | BPF_K | BPF_JGE => at += branch(accumulator >= k),
                c if c == BPF_JMP | BPF_K | BPF_JSET => at += branch(accumulator & k != 0),
                c if c == BPF_RET | BPF_K => return k,
                other => panic!("instruction {other}"),
            }
        }
    }

    /// The same, from the policy.
    fn expected(calls: &BTreeMap<u32, Answer>, call: &Call) -> u32 {
        if call.architecture != OURS {
            return libc::SECCOMP_RET_KILL_PROCESS;
        }
        let mut answer = calls.get(&call.number).copied().unwrap_or(UNKNOWN);
        if let Answer::Depends(rows) = answer {
            let holds = |(argument, test): &(u8, Test)| {
                let value = call.arguments[usize::from(*argument)] as u32;
                match test {
                    Test::Is(wanted) => value == *wanted,
                    Test::HasNoneOf(bits) => value & bits == 0,
                }
            };
            answer = rows.iter().find(|row| row.tests.iter().all(holds)).unwrap().answer;
        }
        match answer {
            Answer::Allow => libc::SECCOMP_RET_ALLOW,
            Answer::Refuse(error) => libc::SECCOMP_RET_ERRNO | error as u32,
            Answer::Depends(_) => panic!("a question behind a question"),
        }
    }

    /// Values that policies ask for, their neighbours, and any.
    fn argument() -> impl Strategy<Value = u64> {
        let near = prop_oneof![0..50u64, 0x2_0000..0x2_0010u64, 0x5410..0x5420u64, Just(u64::from(u32::MAX))];
        let flag = (0..64u32).prop_map(|bit| 1u64 << bit);
        (prop_oneof![near, flag, any::<u64>()], any::<bool>())
            .prop_map(|(value, high)| if high { value | 0xabcd_0000_0000 } else { value })
    }

    fn call() -> impl Strategy<Value = Call> {
        let number =
            prop_oneof![8 => 0..600u32, 1 => (0..600u32).prop_map(|n| n | 0x4000_0000), 1 => any::<u32>()];
        let architecture = prop_oneof![9 => Just(OURS), 1 => any::<u32>()];
        (architecture, number, prop::array::uniform6(argument()))
            .prop_map(|(architecture, number, arguments)| Call { architecture, number, arguments })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_program_says_what_the_policy_says(call in call()) {
            let calls = policy::calls();
            prop_assert_eq!(run(&compile(&calls), &call), expected(&calls, &call));
        }
    }

    #[test]
    fn every_number_has_the_answer_of_the_policy() {
        let calls = policy::calls();
        let program = compile(&calls);
        for number in (0..1000).chain([0x4000_0000, 0x4000_0000 | libc::SYS_mount as u32, u32::MAX]) {
            let call = Call { architecture: OURS, number, arguments: [0; 6] };
            assert_eq!(run(&program, &call), expected(&calls, &call), "{number}");
        }
    }

    #[test]
    fn it_fits_the_kernel_and_its_depth_is_small() {
        let program = compile(&policy::calls());
        assert!(program.len() < 4096, "{} instructions", program.len());
        println!("{} instructions", program.len());
    }
}
