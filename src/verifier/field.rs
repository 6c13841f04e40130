//! Field numbers of the messages that Envoy and gRPC's health checks exchange, by message. The tests read and write the same
//! messages by definitions of their own.

/// `envoy.service.auth.v3.CheckRequest`.
pub mod check_request {
    pub const ATTRIBUTES: u32 = 1;
}

/// `envoy.service.auth.v3.AttributeContext`.
pub mod attribute_context {
    pub const SOURCE: u32 = 1;
    pub const REQUEST: u32 = 4;
    pub const CONTEXT_EXTENSIONS: u32 = 10;
}

/// `envoy.service.auth.v3.AttributeContext.Peer`.
pub mod peer {
    pub const ADDRESS: u32 = 1;
}

/// `envoy.config.core.v3.Address`.
pub mod address {
    pub const SOCKET_ADDRESS: u32 = 1;
    pub const PIPE: u32 = 2;
    pub const ENVOY_INTERNAL_ADDRESS: u32 = 3;
}

/// `envoy.config.core.v3.SocketAddress`.
pub mod socket_address {
    pub const ADDRESS: u32 = 2;
}

/// `envoy.service.auth.v3.AttributeContext.Request`.
pub mod request {
    pub const HTTP: u32 = 2;
}

/// `envoy.service.auth.v3.AttributeContext.HttpRequest`.
pub mod http_request {
    pub const HEADERS: u32 = 3;
    pub const HEADER_MAP: u32 = 13;
}

/// `envoy.config.core.v3.HeaderMap`.
pub mod header_map {
    pub const HEADERS: u32 = 1;
}

/// An entry of a map, as protobuf encodes it.
pub mod map_entry {
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
}

/// `envoy.config.core.v3.HeaderValue`.
pub mod header_value {
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
    pub const RAW_VALUE: u32 = 3;
}

/// `envoy.config.core.v3.HeaderValueOption`.
pub mod header_value_option {
    pub const HEADER: u32 = 1;
    pub const APPEND_ACTION: u32 = 3;
    pub const KEEP_EMPTY_VALUE: u32 = 4;
}

/// `envoy.service.auth.v3.CheckResponse`.
pub mod check_response {
    pub const STATUS: u32 = 1;
    pub const DENIED_RESPONSE: u32 = 2;
    pub const OK_RESPONSE: u32 = 3;
}

/// `google.rpc.Status`.
pub mod status {
    pub const CODE: u32 = 1;
}

/// `envoy.service.auth.v3.DeniedHttpResponse`.
pub mod denied_http_response {
    pub const STATUS: u32 = 1;
    pub const HEADERS: u32 = 2;
    pub const BODY: u32 = 3;
}

/// `envoy.type.v3.HttpStatus`.
pub mod http_status {
    pub const CODE: u32 = 1;
}

/// `envoy.service.auth.v3.OkHttpResponse`.
pub mod ok_http_response {
    pub const HEADERS: u32 = 2;
    pub const HEADERS_TO_REMOVE: u32 = 5;
}

/// `grpc.health.v1.HealthCheckRequest`.
pub mod health_check_request {
    pub const SERVICE: u32 = 1;
}

/// `grpc.health.v1.HealthCheckResponse`.
pub mod health_check_response {
    pub const STATUS: u32 = 1;
}
