//! The control service: small and prompt. Nothing here waits for a reader or for one of the threads that do file work.

use super::Sandbox;
use crate::{fail::Fail, process::pty::Size, signals};
use stacyvm_guest::{
    limits,
    proto::{
        Empty, GetRequest, ListReply, ListRequest, LogsReply, LogsRequest, PingReply, PingRequest, Process,
        ResizeRequest, SignalReply, SignalRequest, StartRequest, WaitRequest, control_server::Control,
    },
};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Debug)]
pub(super) struct ControlService(pub(super) Sandbox);

#[tonic::async_trait]
impl Control for ControlService {
    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let (live_processes, ended_processes) = self.0.table.count();
        Ok(Response::new(PingReply { live_processes, ended_processes }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<Process>, Status> {
        let process = self.0.table.start(request.into_inner()).await?;
        Ok(Response::new(process.describe()))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalReply>, Status> {
        let SignalRequest { id, signal, tree } = request.into_inner();
        let process = self.0.table.get(&id)?;
        if !(1..=signals::LAST).contains(&signal) {
            return Err(Fail::invalid(format!("{signal} is not a signal")).into());
        }
        let delivered = process.signal(signal, tree).await?;
        Ok(Response::new(SignalReply { delivered }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Process>, Status> {
        Ok(Response::new(self.0.table.look(&request.into_inner().id)?.describe()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Ok(Response::new(ListReply { processes: self.0.table.list() }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Process>, Status> {
        let WaitRequest { id, timeout_ms } = request.into_inner();
        let process = self.0.table.get(&id)?;
        process.wait(Instant::now() + Duration::from_millis(timeout_ms.min(limits::WAIT_MS))).await;
        self.0.table.look_at(&process);
        Ok(Response::new(process.describe()))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        Ok(Response::new(LogsReply { lines: self.0.table.lines(request.into_inner().lines) }))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<Empty>, Status> {
        let ResizeRequest { id, size } = request.into_inner();
        self.0.table.get(&id)?.resize(Size::new(size.unwrap_or_default())?)?;
        Ok(Response::new(Empty {}))
    }
}
