//! Log lines: of the server on standard output, of other commands on standard error and only when asked for.
//!
//! The server never waits for whoever reads its log: a thread writes, and lines that find the queue full are dropped and
//! counted. A `stacyvm serve | less` that nobody scrolls must not stop every sandbox.

mod queue;

use queue::Queue;
pub(crate) use queue::Writer;
use stacyvm_config::{LogFormat, LogLevel, Logging};
use tracing_subscriber::EnvFilter;

/// Parts of the HTTP machinery whose messages are about themselves.
const CALM: &str = "hyper=info,hyper_util=info,reqwest=info,h2=info,tonic=info,tower=info,sqlx=warn";

/// Of commands other than `serve`: `-v` says what happens, `-vv` everything.
pub(crate) fn for_client(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => LogLevel::Info,
        2 => LogLevel::Debug,
        _ => LogLevel::Trace,
    };
    // A second subscriber is refused, which only a test can bring about.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && crate::output::colours_allowed())
        .try_init();
}

/// Of the server. What is queued when the value is dropped is still written, for a moment.
pub(crate) fn for_server(logging: &Logging) -> Writer {
    let (queue, writer) = Queue::start(std::io::stdout());
    let builder = tracing_subscriber::fmt().with_env_filter(filter(logging.level)).with_writer(queue);
    let _ = match logging.format {
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
        LogFormat::Pretty => builder.with_ansi(crate::output::colours()).with_target(false).try_init(),
    };
    writer
}

fn filter(level: LogLevel) -> EnvFilter {
    let directives = match level {
        LogLevel::Trace => "trace".to_owned(),
        LogLevel::Off => "off".to_owned(),
        LogLevel::Warn | LogLevel::Error => level.as_str().to_owned(),
        LogLevel::Info | LogLevel::Debug => format!("{},{CALM}", level.as_str()),
    };
    EnvFilter::new(directives)
}
