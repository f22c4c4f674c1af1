//! A queue between those who log and the one thread that writes.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most.
const LINES: usize = 4096;
/// Longest wait for the writer at the end.
const END: Duration = Duration::from_secs(1);

/// Where lines are put.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    lines: SyncSender<Option<Vec<u8>>>,
    dropped: Arc<AtomicU64>,
}

/// The thread that writes them.
#[derive(Debug)]
pub(crate) struct Writer {
    lines: SyncSender<Option<Vec<u8>>>,
    done: Receiver<()>,
}

impl Queue {
    /// A queue whose lines go to `output`.
    pub(crate) fn start(output: impl Write + Send + 'static) -> (Self, Writer) {
        let (lines, queued) = sync_channel(LINES);
        let (finished, done) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        std::thread::spawn(move || {
            write(output, &queued, &count);
            // Nobody may be waiting any more.
            let _ = finished.try_send(());
        });
        (Self { lines: lines.clone(), dropped }, Writer { lines, done })
    }
}

/// Writes until told to end. An output that is gone ends nothing: the server does not live by its log.
fn write(mut output: impl Write, queued: &Receiver<Option<Vec<u8>>>, dropped: &AtomicU64) {
    while let Ok(Some(line)) = queued.recv() {
        let _ = output.write_all(&line);
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(
                output,
                "{{\"level\":\"WARN\",\"message\":\"log lines were dropped\",\"lines\":{lost}}}"
            );
        }
        let _ = output.flush();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Behind everything that is queued; a queue that is full now will not empty in time either.
        if self.lines.try_send(None).is_ok() {
            let _: Result<(), RecvTimeoutError> = self.done.recv_timeout(END);
        }
    }
}

impl Write for Queue {
    /// Takes a whole line; what does not fit is dropped and counted.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Some(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Queue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    #[derive(Default)]
    struct State {
        open: bool,
        text: Vec<u8>,
    }

    /// An output that waits until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<State>, Condvar)>);

    impl Gate {
        fn open(&self) {
            self.0.0.lock().unwrap().open = true;
            self.0.1.notify_all();
        }
        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().text.clone()).unwrap()
        }
    }

    impl Write for Gate {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let mut state = self.0.0.lock().unwrap();
            while !state.open {
                state = self.0.1.wait(state).unwrap();
            }
            state.text.extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_in_order_and_the_last_one_too() {
        let gate = Gate::default();
        gate.open();
        let (mut queue, writer) = Queue::start(gate.clone());
        for i in 0..1000 {
            writeln!(queue, "{i}").unwrap();
        }
        drop(writer);
        let text = gate.text();
        assert!(text.starts_with("0\n1\n2\n") && text.ends_with("\n998\n999\n"), "{}", text.len());
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read() {
        let gate = Gate::default();
        let (mut queue, writer) = Queue::start(gate.clone());
        for _ in 0..LINES + 500 {
            queue.write_all(b"line\n").unwrap();
        }
        gate.open();
        while writer.lines.try_send(None).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        writer.done.recv_timeout(Duration::from_secs(30)).unwrap();
        let text = gate.text();
        assert!(text.lines().filter(|line| *line == "line").count() <= LINES + 1);
        assert!(text.contains("log lines were dropped"), "the loss is told");
    }
}
