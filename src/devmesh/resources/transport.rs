//! Mutual TLS with the secrets that the agent serves: who calls, and who must be on the other end
//! (`pilot/pkg/networking/core/cluster_tls.go`, `pilot/pkg/security/authn`).

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Any, Duration, Struct, Value};

use super::{View, pack};
use crate::devmesh::catalog::{Port, Protocol, Service};
use crate::proto::envoy::cluster::TransportSocketMatch;
use crate::proto::envoy::config_source::Source;
use crate::proto::envoy::string_matcher::Pattern;
use crate::proto::envoy::subject_alt_name_matcher::SanType;
use crate::proto::envoy::tls_parameters::TlsProtocol;
use crate::proto::envoy::{
    AggregatedConfigSource, ApiConfigSource, ApiVersion, CertificateValidationContext,
    CombinedValidationContext, CommonTlsContext, ConfigSource, DownstreamTlsContext, EnvoyGrpc,
    GrpcService, Metadata, SdsSecretConfig, StringMatcher, SubjectAltNameMatcher, TlsParameters,
    TransportSocket, UpstreamTlsContext, api_config_source,
};

/// Configuration from the stream itself.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        source: Some(Source::Ads(AggregatedConfigSource {})),
        initial_fetch_timeout: Some(Duration::default()),
        resource_api_version: ApiVersion::V3.into(),
    }
}

/// Mutual TLS to endpoints that take part in it, plain text to the others.
pub(super) fn by_endpoint(
    view: &View<'_>,
    service: &Service,
    port: &Port,
) -> Vec<TransportSocketMatch> {
    let meshed = TransportSocketMatch {
        name: "tlsMode-istio".to_owned(),
        r#match: Some(mode()),
        transport_socket: Some(upstream(view, service, port)),
    };
    let plain = TransportSocketMatch {
        name: "tlsMode-disabled".to_owned(),
        r#match: Some(Struct::default()),
        transport_socket: Some(socket("envoy.transport_sockets.raw_buffer", pack(RAW_BUFFER, &()))),
    };
    vec![meshed, plain]
}

/// What an endpoint must be marked with to be called with mutual TLS.
pub(super) fn mark() -> Metadata {
    let name = "envoy.transport_socket_match".to_owned();
    Metadata { filter_metadata: BTreeMap::from([(name, mode())]) }
}

fn mode() -> Struct {
    let istio = Value { kind: Some(Kind::StringValue("istio".to_owned())) };
    Struct { fields: [("tlsMode".to_owned(), istio)].into() }
}

fn upstream(view: &View<'_>, service: &Service, port: &Port) -> TransportSocket {
    let mut ids: Vec<String> =
        service.endpoints.iter().filter_map(|one| one.id(view.trust_domain)).collect();
    ids.sort_unstable();
    ids.dedup();
    let protocols: &[&str] = match port.protocol {
        Protocol::Http2 => &["istio", "h2"],
        Protocol::Http | Protocol::Tcp => &["istio"],
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(protocols, ids.into_iter().map(Pattern::Exact))),
        sni: format!("outbound_.{}_._.{}", port.number, service.host),
    };
    socket(TLS_SOCKET, pack(UPSTREAM, &context))
}

/// The server's side: a certificate of the mesh is wanted from everybody.
pub(super) fn downstream(view: &View<'_>) -> TransportSocket {
    let mesh = Pattern::Prefix(format!("spiffe://{}/", view.trust_domain));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(&["istio", "h2", "http/1.1"], [mesh])),
        require_client_certificate: Some(true),
    };
    socket(TLS_SOCKET, pack(DOWNSTREAM, &context))
}

fn common(protocols: &[&str], names: impl IntoIterator<Item = Pattern>) -> CommonTlsContext {
    let name = |pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher { pattern: Some(pattern) }),
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::Tlsv12.into(),
            tls_maximum_protocol_version: TlsProtocol::Tlsv13.into(),
        }),
        alpn_protocols: protocols.iter().map(|&name| name.to_owned()).collect(),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        combined_validation_context: Some(CombinedValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: names.into_iter().map(name).collect(),
            }),
            validation_context_sds_secret_config: Some(secret("ROOTCA")),
        }),
    }
}

/// A secret of the agent's; Envoy waits for it as long as it takes.
fn secret(name: &str) -> SdsSecretConfig {
    let cluster_name = "sds-grpc".to_owned();
    let source = ApiConfigSource {
        api_type: api_config_source::ApiType::Grpc.into(),
        grpc_services: vec![GrpcService { envoy_grpc: Some(EnvoyGrpc { cluster_name }) }],
        set_node_on_first_message_only: true,
        transport_api_version: ApiVersion::V3.into(),
    };
    let sds_config = ConfigSource {
        source: Some(Source::ApiConfigSource(source)),
        initial_fetch_timeout: Some(Duration::default()),
        resource_api_version: ApiVersion::V3.into(),
    };
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(sds_config) }
}

fn socket(name: &str, config: Any) -> TransportSocket {
    TransportSocket { name: name.to_owned(), typed_config: Some(config) }
}

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const UPSTREAM: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const RAW_BUFFER: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
