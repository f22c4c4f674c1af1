//! Tests of driving a process, with a process that is a script.

use super::*;
use stacyvm_types::{ErrorCode, StreamName};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;

#[derive(Default)]
struct State {
    stdin: Vec<u8>,
    closed: bool,
    signals: Vec<i32>,
}

/// Plays its script, then ends once stdin is closed or a signal came, whichever it waits for.
struct Script {
    output: VecDeque<Output>,
    wait_for: Option<i32>,
    control: Handle,
}

#[derive(Clone, Default)]
struct Handle(Arc<Mutex<State>>);

impl Attached for Script {
    type Control = Handle;

    fn control(&self) -> Handle {
        self.control.clone()
    }

    async fn next(&mut self) -> Result<Output> {
        if let Some(output) = self.output.pop_front() {
            return Ok(output);
        }
        loop {
            {
                let state = self.control.0.lock().unwrap();
                let done = match self.wait_for {
                    None => state.closed,
                    Some(signal) => state.signals.contains(&signal),
                };
                if done {
                    let signal = self.wait_for;
                    let exit_code = Some(signal.map_or(3, |signal| 128 + signal));
                    return Ok(Output::Exit(ExitRecord { exit_code, signal, ..ExitRecord::default() }));
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Control for Handle {
    async fn signal(&self, signal: i32) -> Result<()> {
        self.0.lock().unwrap().signals.push(signal);
        Ok(())
    }

    async fn resize(&self, _: PtySize) -> Result<()> {
        Ok(())
    }

    /// Takes at most three bytes at a time.
    async fn write_stdin(&self, offset: u64, data: Bytes, eof: bool) -> Result<StdinAck> {
        let mut state = self.0.lock().unwrap();
        assert_eq!(offset, state.stdin.len() as u64);
        state.stdin.extend_from_slice(&data[..data.len().min(3)]);
        state.closed |= eof;
        Ok(StdinAck { accepted: state.stdin.len() as u64, closed: false })
    }
}

fn data(text: &str) -> Output {
    Output::Data { stream: StreamName::Stdout, data: Bytes::from(text.to_owned()) }
}

async fn play(script: &mut Script, stdin: Option<mpsc::Receiver<Bytes>>) -> (ExitRecord, Vec<u8>) {
    let mut sink = Sink::Memory(crate::stdio::Captured::default());
    let mut signals = Signals::listen().unwrap();
    let exit = drive(script, Input { stdin, ..Input::default() }, &mut signals, &mut sink).await.unwrap();
    let exit = exit.exited().unwrap();
    let Sink::Memory(captured) = sink else { unreachable!() };
    (exit, captured.stdout.bytes)
}

#[tokio::test]
async fn stdin_arrives_whole_and_output_in_order() {
    let control = Handle::default();
    let mut script =
        Script { output: VecDeque::from([data("a"), data("b")]), wait_for: None, control: control.clone() };
    let (sender, receiver) = mpsc::channel(4);
    for piece in ["hello ", "wor", "ld"] {
        sender.try_send(Bytes::from(piece)).unwrap();
    }
    drop(sender);
    let (exit, stdout) = play(&mut script, Some(receiver)).await;
    assert_eq!((exit.exit_code, stdout.as_slice()), (Some(3), b"ab".as_slice()));
    assert_eq!(control.0.lock().unwrap().stdin, b"hello world");
}

#[tokio::test]
async fn the_first_signal_is_passed_on_and_the_second_kills() {
    let control = Handle::default();
    pass_on(&control, 15, 1).unwrap();
    pass_on(&control, INT, 2).unwrap();
    let mut script = Script { output: VecDeque::new(), wait_for: Some(KILL), control: control.clone() };
    let (exit, _) = play(&mut script, None).await;
    assert_eq!(exit_code(&exit).unwrap(), 137);
    assert_eq!(control.0.lock().unwrap().signals, [15, KILL]);
    assert_eq!(pass_on(&control, INT, 3).unwrap_err().code, 130);
}

#[test]
fn ends_as_exit_codes() {
    let exit = |exit_code, timed_out| ExitRecord { exit_code, timed_out, ..ExitRecord::default() };
    assert_eq!(exit_code(&exit(Some(7), false)).unwrap(), 7);
    assert_eq!(exit_code(&exit(Some(137), true)).unwrap(), code::TIMED_OUT);
    assert_eq!(exit_code(&exit(None, false)).unwrap_err().code, code::OURS);
}

#[test]
fn limits_in_words() {
    assert_eq!(in_words(Limit::Oom, 512), "the sandbox's memory limit (512 MiB) was hit");
    assert_eq!(in_words(Limit::Oom, 0), "the sandbox's memory limit was hit");
    assert_eq!(in_words(Limit::DiskFull, 512), "the sandbox's disk is full");
}

#[test]
fn starts_that_fail_as_exit_codes() {
    let failed = |kind, exists| start_failure(Failure { kind, ..Failure::new("x", "") }, exists).code;
    assert_eq!(failed(Some(ErrorCode::NotFound), true), code::NOT_FOUND);
    assert_eq!(failed(Some(ErrorCode::NotFound), false), code::OURS);
    assert_eq!(failed(Some(ErrorCode::BadRequest), true), code::NOT_EXECUTABLE);
    assert_eq!(failed(None, true), code::OURS);
}
