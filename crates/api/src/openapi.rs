//! The description of the API: generated from the routes, committed as `openapi/v1.json`, served.

use crate::{ApiState, error};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use utoipa::{
    OpenApi as _,
    openapi::{
        OpenApi,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "StacyVM",
        description = "Disposable computers for software agents. Errors have the body `{\"code\",\"message\"}`. \
                       Times to live and timeouts are written `30s`, `5m`, `1h30m`. Unknown fields are ignored.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(stacyvm_types::ErrorBody)),
    tags(
        (name = "sandboxes", description = "Make, look at and destroy sandboxes"),
        (name = "exec", description = "Run a command and get its output"),
        (name = "processes", description = "Processes that belong to no connection"),
        (name = "files", description = "Files in a sandbox"),
        (name = "providers", description = "Runtimes"),
        (name = "system", description = "The server")
    )
)]
struct Description;

/// The description without routes.
pub(crate) fn base() -> OpenApi {
    let mut api = Description::openapi();
    // The version of the interface, not of the build: the committed file must not change with every release.
    api.info.version = "1".into();
    let components = api.components.get_or_insert_default();
    let header = |name: &str, text: &str| {
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, text)))
    };
    components.add_security_scheme("ApiKey", header("X-API-Key", "Key for ordinary routes."));
    components.add_security_scheme("AdminKey", header("X-Admin-API-Key", "Key for all routes."));
    api
}

/// The description as it is committed and served.
pub(crate) fn text(api: &OpenApi) -> String {
    match serde_json::to_string_pretty(api) {
        Ok(text) => text + "\n",
        Err(error) => {
            tracing::error!(%error, "the API description could not be written as JSON");
            String::new()
        }
    }
}

/// The description of this API
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "system", responses((status = 200, description = "OpenAPI 3.1 document", content_type = "application/json")))]
pub(crate) async fn openapi_json(State(state): State<ApiState>) -> Response {
    let body = state.openapi();
    if body.is_empty() {
        return error::ApiError::internal("the API description could not be encoded").into_response();
    }
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The description of this API, where older clients look for it
#[utoipa::path(get, path = "/swagger/doc.json", tag = "system", responses((status = 200, description = "OpenAPI 3.1 document", content_type = "application/json")))]
pub(crate) async fn swagger_json(state: State<ApiState>) -> Response {
    openapi_json(state).await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_committed_description_is_the_generated_one() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/v1.json");
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        let generated = crate::openapi();
        if std::env::var_os("STACYVM_UPDATE_OPENAPI").is_some() {
            std::fs::write(&file, &generated).unwrap();
            return;
        }
        assert!(
            committed == generated,
            "openapi/v1.json is out of date: run `cargo run -p xtask openapi`, or this test with STACYVM_UPDATE_OPENAPI=1"
        );
    }
}
