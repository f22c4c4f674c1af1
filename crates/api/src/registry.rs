//! How routes are registered: a route cannot be added without a scope, it gets its trailing-slash twin, and it is part of
//! the API description by the same act.

use crate::{
    ApiState,
    auth::{Access, AccessTable, Scope},
};
use axum::Router;
use http::Method;
use utoipa::openapi::{
    Components, ContentBuilder, OpenApi, Ref, ResponseBuilder,
    path::{Operation, PathItem},
    security::SecurityRequirement,
};
use utoipa_axum::router::UtoipaMethodRouter;

/// Routes, what they ask of callers, and their description, growing together.
pub(crate) struct Routes {
    router: Router<ApiState>,
    access: AccessTable,
    openapi: OpenApi,
}

impl Routes {
    pub(crate) fn new(openapi: OpenApi) -> Self {
        Self { router: Router::new(), access: AccessTable::default(), openapi }
    }

    /// Adds routes whose bodies, if any, are JSON.
    pub(crate) fn add(self, scope: Scope, routes: UtoipaMethodRouter<ApiState>) -> Self {
        self.insert(Access { scope, raw_body: false }, routes)
    }

    /// Adds routes that take bytes.
    pub(crate) fn add_raw(self, scope: Scope, routes: UtoipaMethodRouter<ApiState>) -> Self {
        self.insert(Access { scope, raw_body: true }, routes)
    }

    fn insert(mut self, access: Access, (schemas, paths, handler): UtoipaMethodRouter<ApiState>) -> Self {
        for (path, mut item) in paths.paths {
            self.router =
                self.router.route(&path, handler.clone()).route(&format!("{path}/"), handler.clone());
            for (method, operation) in operations(&mut item) {
                self.access.insert(path.clone(), method.clone(), access);
                self.access.insert(format!("{path}/"), method, access);
                describe(operation, access.scope);
            }
            match self.openapi.paths.paths.get_mut(&path) {
                Some(known) => known.merge_operations(item),
                None => {
                    self.openapi.paths.paths.insert(path, item);
                }
            }
        }
        self.openapi.components.get_or_insert_with(Components::new).schemas.extend(schemas);
        self
    }

    pub(crate) fn into_parts(self) -> (Router<ApiState>, AccessTable, OpenApi) {
        (self.router, self.access, self.openapi)
    }
}

/// Every operation of a path with its method.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    [
        (Method::GET, item.get.as_mut()),
        (Method::PUT, item.put.as_mut()),
        (Method::POST, item.post.as_mut()),
        (Method::DELETE, item.delete.as_mut()),
        (Method::HEAD, item.head.as_mut()),
        (Method::PATCH, item.patch.as_mut()),
        (Method::OPTIONS, item.options.as_mut()),
        (Method::TRACE, item.trace.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| operation.map(|operation| (method, operation)))
}

/// Writes down what every operation has in common: the scope, where a client generator expects it, and the error body.
fn describe(operation: &mut Operation, scope: Scope) {
    let schemes: &[&str] = match scope {
        Scope::Public => &[],
        Scope::Read | Scope::Write => &["ApiKey", "AdminKey"],
        Scope::Admin => &["AdminKey"],
    };
    let requirement = |scheme: &&str| SecurityRequirement::new(*scheme, [scope.name()]);
    operation.security = Some(schemes.iter().map(requirement).collect());
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    let error = ResponseBuilder::new().description("Error").content("application/json", body).build();
    operation.responses.responses.insert("default".into(), error.into());
}
