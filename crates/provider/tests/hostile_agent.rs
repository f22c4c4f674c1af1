//! The host half against agents that hang, lie and flood. Time is simulated: a deadline of a minute costs nothing here,
//! and a call without one would never end.

#![expect(clippy::unwrap_used, reason = "a test, helpers included")]

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use stacyvm_guest::{
    hello, limits,
    proto::{
        self,
        bulk_server::{Bulk, BulkServer},
        control_server::{Control, ControlServer},
    },
};
use stacyvm_provider::{
    AgentEndpoint, AgentGuest, Duplex, ErrorKind, ExtractTarget, Guest, Identity, ProcessSpec, PtySize,
    ReadRange,
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tonic::{Request, Response, Status, Streaming};

/// What the agent does with each new connection.
#[derive(Clone, Copy)]
enum Behaviour {
    NeverWelcomes,
    SpeaksHttp,
    Refuses,
    WelcomesThenHangs,
    WelcomesThenFloods,
    ServesLies,
}

struct Hostile(Behaviour);

#[async_trait]
impl AgentEndpoint for Hostile {
    async fn dial(&self) -> stacyvm_provider::Result<Box<dyn Duplex>> {
        let (host, agent) = tokio::io::duplex(64 << 10);
        tokio::spawn(behave(self.0, agent));
        Ok(Box::new(host))
    }
}

async fn behave(behaviour: Behaviour, mut stream: DuplexStream) {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.unwrap();
    let mut body = vec![0; hello::frame_length(prefix).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    let mut welcome = proto::Welcome {
        magic: hello::MAGIC,
        version: 1,
        sandbox_id: "sb-1".into(),
        ..proto::Welcome::default()
    };
    match behaviour {
        Behaviour::NeverWelcomes => return std::future::pending().await,
        Behaviour::SpeaksHttp => {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            return std::future::pending().await;
        }
        Behaviour::Refuses => welcome.refused = "a newer control plane is connected".into(),
        _ => {}
    }
    let _ = stream.write_all(&hello::encode_frame(&welcome)).await;
    match behaviour {
        Behaviour::WelcomesThenFloods => while stream.write_all(&[0x42; 4096]).await.is_ok() {},
        Behaviour::ServesLies => {
            let one = stream::once(async { Ok::<_, std::io::Error>(stream) }).chain(stream::pending());
            let server = tonic::transport::Server::builder()
                .add_service(ControlServer::new(Liar))
                .add_service(BulkServer::new(Liar).max_encoding_message_size(64 << 20));
            server.serve_with_incoming(one).await.unwrap();
        }
        _ => std::future::pending().await,
    }
}

fn guest(behaviour: Behaviour) -> AgentGuest {
    let identity = Identity { installation_id: "i".into(), generation: 1, sandbox_id: "sb-1".into() };
    AgentGuest::new(Arc::new(Hostile(behaviour)), identity)
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_silence_ends_in_unavailable() {
    for behaviour in [
        Behaviour::NeverWelcomes,
        Behaviour::SpeaksHttp,
        Behaviour::Refuses,
        Behaviour::WelcomesThenHangs,
        Behaviour::WelcomesThenFloods,
    ] {
        let guest = guest(behaviour);
        let bound = Duration::from_secs(120);
        let error = tokio::time::timeout(bound, guest.ping()).await.expect("bounded").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let error = tokio::time::timeout(bound, guest.stat("/x", true)).await.expect("bounded").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let spec = ProcessSpec { id: "p".into(), argv: vec!["true".into()], ..ProcessSpec::default() };
        let error = tokio::time::timeout(bound, guest.start(&spec)).await.expect("bounded").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_end_at_their_deadline() {
    let guest = guest(Behaviour::ServesLies);
    let error = guest.signal("p", stacyvm_provider::Signal::KILL, true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let error = guest.wait("p", Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let error = guest.resize("p", PtySize::USUAL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_got_no_terminal_is_not_one_that_was_asked_for() {
    let guest = guest(Behaviour::ServesLies);
    let spec = ProcessSpec {
        id: "old".into(),
        argv: vec!["true".into()],
        pty: Some(PtySize::USUAL),
        ..ProcessSpec::default()
    };
    let error = guest.start(&spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    // That it is killed can be seen where nobody answers to that.
    let spec = ProcessSpec { id: "mute".into(), ..spec };
    let error = guest.start(&spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn lies_are_internal_errors_not_results() {
    let guest = guest(Behaviour::ServesLies);
    let error = guest.process("p").await.unwrap_err();
    assert!(error.message().contains("exit status"), "{error:?}");

    let spec = ProcessSpec { id: "mine".into(), argv: vec!["true".into()], ..ProcessSpec::default() };
    let error = guest.start(&spec).await.unwrap_err();
    assert!(error.message().contains("another process"), "{error:?}");

    let mut output = guest.attach("p", 0, true, false).await.unwrap();
    assert!(output.next().await.unwrap().is_ok());
    let error = output.next().await.unwrap().unwrap_err();
    assert!(error.message().contains("out of order"), "{error:?}");
    assert!(output.next().await.is_none(), "a stream ends with its error");

    let (_, mut content) = guest.read_file("/f", ReadRange::default()).await.unwrap();
    let mut total = 0;
    let error = loop {
        match content.next().await {
            Some(Ok(bytes)) => total += bytes.len(),
            Some(Err(error)) => break error,
            None => panic!("{total} bytes of a file of 10 passed for the whole file"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Internal, "{error:?}");
    assert!(total <= 10);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_not_what_was_asked_for_is_an_error_in_bounded_time() {
    let guest = guest(Behaviour::ServesLies);
    let run = async |id: &str| {
        let spec = ProcessSpec { id: id.into(), argv: vec!["true".into()], ..ProcessSpec::default() };
        tokio::time::timeout(Duration::from_secs(120), guest.run(&spec)).await.expect("bounded")
    };
    for (id, kind) in [
        ("silent", ErrorKind::Unavailable),
        ("hung", ErrorKind::Unavailable),
        ("empty", ErrorKind::Internal),
        ("headless", ErrorKind::Internal),
        ("mistaken", ErrorKind::Internal),
    ] {
        let error = run(id).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{id}: {error:?}");
    }
    let (_, mut output) = run("restarting").await.unwrap();
    assert!(output.next().await.unwrap().is_ok());
    assert!(output.next().await.unwrap().unwrap_err().message().contains("broke the protocol"));
    assert!(output.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_run_is_asked_the_older_way() {
    let spec = ProcessSpec { id: "theirs".into(), argv: vec!["true".into()], ..ProcessSpec::default() };
    let (process, mut output) = guest(Behaviour::ServesLies).run(&spec).await.unwrap();
    assert_eq!(process.id, "theirs");
    assert!(output.next().await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn floods_are_cut_at_their_bound() {
    let guest = guest(Behaviour::ServesLies);
    let error = guest.list_dir("/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit, "{error:?}");
    let error = guest.processes().await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound, "a message of 8 MiB is refused: {error:?}");
}

#[tokio::test(start_paused = true)]
async fn lies_about_trees_end_the_stream_and_silence_does_too() {
    let guest = guest(Behaviour::ServesLies);
    for (path, kind) in [
        ("/empty", ErrorKind::Internal),
        ("/large", ErrorKind::Internal),
        ("/silent", ErrorKind::Unavailable),
    ] {
        let mut content = guest.archive(path).await.unwrap();
        assert_eq!(content.next().await.unwrap().unwrap().len(), 5);
        let error = content.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error:?}");
        assert!(content.next().await.is_none(), "{path}");
    }
    let error = guest.watch("/early", true).await.err().unwrap();
    assert!(error.message().contains("broke the protocol"), "{error:?}");
    for path in ["/relative", "/empty"] {
        let changes: Vec<_> = guest.watch(path, true).await.unwrap().collect().await;
        assert_eq!(changes.len(), 2, "{path}: {changes:?}");
        let error = changes.last().unwrap().as_ref().unwrap_err();
        assert!(error.message().contains("broke the protocol"), "{error:?}");
    }
    assert_eq!(guest.usage("/").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_too_old_for_a_call_is_said_to_be() {
    let guest = guest(Behaviour::ServesLies);
    let target = ExtractTarget { path: "/x".into(), user: None };
    for error in [
        guest.archive("/x").await.err().unwrap(),
        guest.watch("/x", false).await.err().unwrap(),
        guest.extract(&target, stream::empty().boxed()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("sb-1 is older than this server"), "{error:?}");
    }
}

struct Liar;
type Out<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl Control for Liar {
    async fn ping(&self, _: Request<proto::PingRequest>) -> Result<Response<proto::PingReply>, Status> {
        Ok(Response::new(proto::PingReply::default()))
    }
    async fn start(&self, request: Request<proto::StartRequest>) -> Result<Response<proto::Process>, Status> {
        let id = request.into_inner().id;
        let id = if matches!(id.as_str(), "old" | "mute") { id } else { "theirs".to_owned() };
        Ok(Response::new(proto::Process { id, ..proto::Process::default() }))
    }
    async fn signal(
        &self,
        request: Request<proto::SignalRequest>,
    ) -> Result<Response<proto::SignalReply>, Status> {
        match request.into_inner().id.as_str() {
            "old" => Ok(Response::new(proto::SignalReply { delivered: true })),
            _ => std::future::pending().await,
        }
    }
    async fn resize(&self, _: Request<proto::ResizeRequest>) -> Result<Response<proto::Empty>, Status> {
        std::future::pending().await
    }
    async fn get(&self, _: Request<proto::GetRequest>) -> Result<Response<proto::Process>, Status> {
        let outcome = Some(proto::process::Outcome::ExitCode(-7));
        Ok(Response::new(proto::Process { outcome, ..proto::Process::default() }))
    }
    async fn list(&self, _: Request<proto::ListRequest>) -> Result<Response<proto::ListReply>, Status> {
        let process = proto::Process { tag: "x".repeat(8 << 20), ..proto::Process::default() };
        Ok(Response::new(proto::ListReply { processes: vec![process] }))
    }
    async fn wait(&self, _: Request<proto::WaitRequest>) -> Result<Response<proto::Process>, Status> {
        std::future::pending().await
    }
    async fn logs(&self, _: Request<proto::LogsRequest>) -> Result<Response<proto::LogsReply>, Status> {
        Ok(Response::new(proto::LogsReply::default()))
    }
}

fn no<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not part of this test"))
}

#[async_trait]
impl Bulk for Liar {
    type AttachStream = Out<proto::OutputEvent>;
    type RunStream = Out<proto::OutputEvent>;
    type ReadFileStream = Out<proto::ReadFilePart>;
    type ListDirStream = Out<proto::FileInfos>;
    type GlobStream = Out<proto::FileInfos>;
    type ArchiveStream = Out<proto::ArchivePart>;
    type WatchStream = Out<proto::WatchEvents>;

    async fn attach(&self, _: Request<proto::AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        let chunk = |offset| {
            let chunk = proto::OutputChunk { stream: 1, offset, data: Bytes::from_static(b"abc") };
            Ok(proto::OutputEvent { event: Some(proto::output_event::Event::Chunk(chunk)) })
        };
        Ok(Response::new(stream::iter([chunk(0), chunk(0), chunk(3)]).boxed()))
    }
    /// Does to each process what its name says.
    async fn run(&self, request: Request<proto::RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        use proto::output_event::Event;
        let id = request.into_inner().start.unwrap_or_default().id;
        let started =
            |id: &str| Event::Started(proto::Process { id: id.into(), ..proto::Process::default() });
        let chunk =
            Event::Chunk(proto::OutputChunk { stream: 1, offset: 0, data: Bytes::from_static(b"abc") });
        let events = match id.as_str() {
            "silent" => return Ok(Response::new(stream::pending().boxed())),
            "hung" => return std::future::pending().await,
            "empty" => Vec::new(),
            "headless" => vec![chunk],
            "mistaken" => vec![started("theirs")],
            "restarting" => vec![started(&id), chunk, started(&id)],
            _ => return no(),
        };
        Ok(Response::new(
            stream::iter(events).map(|event| Ok(proto::OutputEvent { event: Some(event) })).boxed(),
        ))
    }
    async fn read_file(
        &self,
        _: Request<proto::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        use proto::read_file_part::Part;
        let info = proto::FileInfo { size: 10, kind: 1, ..proto::FileInfo::default() };
        let parts = [
            Part::Info(info),
            Part::Data(Bytes::from_static(b"12345")),
            Part::Data(Bytes::from(vec![0; 4096])),
        ];
        Ok(Response::new(
            stream::iter(parts.map(|part| Ok(proto::ReadFilePart { part: Some(part) }))).boxed(),
        ))
    }
    async fn list_dir(
        &self,
        _: Request<proto::ListDirRequest>,
    ) -> Result<Response<Self::ListDirStream>, Status> {
        let file = proto::FileInfo { path: "/".repeat(4000), kind: 1, ..proto::FileInfo::default() };
        let batch = proto::FileInfos { files: vec![file; limits::FILES_PER_MESSAGE - 1] };
        Ok(Response::new(stream::repeat_with(move || Ok(batch.clone())).boxed()))
    }
    async fn glob(&self, _: Request<proto::GlobRequest>) -> Result<Response<Self::GlobStream>, Status> {
        no()
    }
    async fn write_stdin(
        &self,
        _: Request<proto::StdinRequest>,
    ) -> Result<Response<proto::StdinReply>, Status> {
        no()
    }
    async fn write_file(
        &self,
        _: Request<Streaming<proto::WriteFilePart>>,
    ) -> Result<Response<proto::FileInfo>, Status> {
        no()
    }
    async fn stat(&self, _: Request<proto::PathRequest>) -> Result<Response<proto::FileInfo>, Status> {
        no()
    }
    async fn r#move(&self, _: Request<proto::MoveRequest>) -> Result<Response<proto::Empty>, Status> {
        no()
    }
    async fn chmod(&self, _: Request<proto::ChmodRequest>) -> Result<Response<proto::Empty>, Status> {
        no()
    }
    async fn mkdir(&self, _: Request<proto::MkdirRequest>) -> Result<Response<proto::Empty>, Status> {
        no()
    }
    async fn remove(&self, _: Request<proto::RemoveRequest>) -> Result<Response<proto::Empty>, Status> {
        no()
    }
    /// Packs as the path says.
    async fn archive(
        &self,
        request: Request<proto::ArchiveRequest>,
    ) -> Result<Response<Self::ArchiveStream>, Status> {
        let part = |size| Ok(proto::ArchivePart { data: Bytes::from(vec![0; size]) });
        Ok(Response::new(match request.into_inner().path.as_str() {
            "/empty" => stream::iter([part(5), part(0), part(5)]).boxed(),
            "/large" => stream::iter([part(5), part(200 << 10), part(5)]).boxed(),
            "/silent" => stream::iter([part(5)]).chain(stream::pending()).boxed(),
            // What an agent that does not know the call says.
            _ => return Err(Status::unimplemented("")),
        }))
    }
    async fn extract(
        &self,
        _: Request<Streaming<proto::ExtractPart>>,
    ) -> Result<Response<proto::ExtractReply>, Status> {
        Err(Status::unimplemented(""))
    }
    /// Tells what the path says.
    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let event = |path: &str| proto::WatchEvent { kind: 1, path: path.into(), ..Default::default() };
        let batch =
            |paths: &[&str]| Ok(proto::WatchEvents { events: paths.iter().map(|p| event(p)).collect() });
        let batches = match request.into_inner().path.as_str() {
            "/early" => vec![batch(&["/a"])],
            "/relative" => vec![batch(&[]), batch(&["/a", "b", "/c"]), batch(&["/d"])],
            "/empty" => vec![batch(&[]), batch(&["/a"]), batch(&[]), batch(&["/b"])],
            _ => return Err(Status::unimplemented("")),
        };
        Ok(Response::new(stream::iter(batches).boxed()))
    }
    async fn usage(&self, _: Request<proto::UsageRequest>) -> Result<Response<proto::UsageReply>, Status> {
        std::future::pending().await
    }
}
