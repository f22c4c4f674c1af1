//! The HTTP faces of the engine: `/api/v1`, authentication, streams, metrics. No life-cycle logic lives here: handlers
//! check what a client wrote, ask the engine, and write down the answer.
//!
//! [`router`] is the whole API as a service; [`serve`] runs it on a listener.

mod auth;
mod body;
mod coding;
mod command;
mod config;
mod cors;
mod drain;
mod error;
mod event_filter;
mod exec_guard;
mod extract;
mod host;
mod ndjson;
mod openapi;
mod origin;
mod paths;
mod place;
mod prometheus;
mod range;
mod records;
mod registry;
mod routes;
mod serve;
mod socket;
mod state;
mod stop;
#[cfg(test)]
mod testing;
mod text;
mod trace;
mod wire;

pub use config::{ApiConfig, BodyLimits};
pub use serve::serve;
pub use state::ApiState;

use axum::{Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

/// The API.
///
/// From the outside in: request id and access log, panics, CORS (so that preflights need no key), the guard of a
/// listener without keys, authentication and scope, the route.
pub fn router(state: ApiState) -> Router {
    let (routes, _, _) = routes::all().into_parts();
    layered(routes, state)
}

fn layered(routes: Router<ApiState>, state: ApiState) -> Router {
    routes
        .fallback(routes::no_such_route)
        .method_not_allowed_fallback(routes::no_such_method)
        .layer(middleware::from_fn_with_state(state.clone(), auth::require_scope))
        .layer(middleware::from_fn_with_state(state.clone(), origin::guard))
        .layer(cors::layer(state.config()))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(middleware::from_fn(trace::trace))
        .with_state(state)
}

/// The description of the API as `openapi/v1.json` holds it, newline included.
pub fn openapi() -> String {
    let (_, description) = routes::description();
    openapi::text(&description)
}
