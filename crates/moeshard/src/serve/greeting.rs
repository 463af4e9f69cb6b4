//! What the server says once it can answer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use moeshard_batcher::ModelInfo;
use moeshard_tensor::cpu::Isa;

/// Says what is served and how to try it.
pub(super) fn greet(info: &ModelInfo, address: SocketAddr, took: Duration, json: bool) {
    let url = url(address);
    let kernels = Isa::detect().to_string();
    if json {
        tracing::info!(
            model = info.id,
            family = info.family,
            dtype = info.dtype,
            ranks = info.world_size,
            experts = info.experts,
            kernels,
            url,
            load_ms = took.as_millis() as u64,
            "ready"
        );
        return;
    }
    tracing::info!(
        "ready after {:.1} s: {} at {url}\n{}",
        took.as_secs_f64(),
        describe(info, &kernels),
        example(info, &url)
    );
}

/// One line about the model.
fn describe(info: &ModelInfo, kernels: &str) -> String {
    let experts = match info.n_experts {
        0 => "dense".to_owned(),
        n => format!("{n} experts top-{}", info.top_k),
    };
    let ranks = match info.world_size {
        1 => "1 rank".to_owned(),
        n => format!("{n} ranks, {}", info.experts),
    };
    format!(
        "{} ({}, {} layers, {experts}, {}, {ranks}, {kernels})",
        info.id, info.family, info.n_layers, info.dtype
    )
}

fn example(info: &ModelInfo, url: &str) -> String {
    let route = if info.classifier { "classify" } else { "embed" };
    format!(
        "try: curl {url}/{route} -H 'content-type: application/json' -d '{{\"inputs\":\"Hello, world\"}}'"
    )
}

/// An address that can be typed where the server runs.
fn url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_what_is_served() {
        let info = ModelInfo {
            id: "mini".into(),
            family: "nomic-bert".into(),
            dtype: "bfloat16".into(),
            n_layers: 4,
            n_experts: 8,
            top_k: 2,
            world_size: 2,
            experts: "sharded".into(),
            ..ModelInfo::default()
        };
        assert_eq!(
            describe(&info, "avx2"),
            "mini (nomic-bert, 4 layers, 8 experts top-2, bfloat16, 2 ranks, sharded, avx2)"
        );
        assert_eq!(url(([0, 0, 0, 0], 80).into()), "http://127.0.0.1:80");
        assert_eq!(
            url("[::1]:3000".parse().expect("an address")),
            "http://[::1]:3000"
        );
    }
}
