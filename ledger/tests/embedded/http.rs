//! What the server takes, and what it refuses.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ledger::embedded::{Chain, Sealing, serve};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::sleep};

use crate::support::{Account, ETHER, genesis, served};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn a_page_in_a_browser_gets_nothing() {
    let served = served(&[], false);
    let port = served.client.address.port();
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}).to_string();
    let status = |headers: &[(&str, &str)]| served.client.post(headers, &body).0;
    for host in ["localhost", &format!("localhost:{port}"), &format!("127.0.0.1:{port}"), "[::1]:1"] {
        assert_eq!(status(&[("host", host), JSON]), 200, "{host}");
    }
    for host in ["rebound.example", &format!("rebound.example:{port}"), "127.0.0.1.example", "", "10.0.0.1"] {
        assert_eq!(status(&[("host", host), JSON]), 403, "{host}");
    }
    assert_eq!(status(&[JSON]), 403, "no host");
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
        assert_eq!(status(&[("host", "localhost"), ("content-type", kind)]), 415, "{kind}");
    }
    assert_eq!(status(&[("host", "localhost"), ("content-type", "application/json; charset=utf-8")]), 200);
}

#[test]
fn batches_are_answered_in_order() {
    let served = served(&[], false);
    let post = |body: &Value| served.client.post(&[("host", "localhost"), JSON], &body.to_string());
    let call = |id: Value, method: &str| json!({"jsonrpc": "2.0", "id": id, "method": method});
    let (status, text) = post(&json!([
        call(json!(1), "eth_chainId"),
        call(json!("b"), "eth_none"),
        {"jsonrpc": "2.0", "method": "eth_chainId"},
        7,
    ]));
    let answers: Value = serde_json::from_str(&text).expect("the answer is JSON");
    assert_eq!(status, 200);
    assert_eq!(answers[0], json!({"jsonrpc": "2.0", "id": 1, "result": "0x7a69"}));
    assert_eq!((&answers[1]["id"], &answers[1]["error"]["code"]), (&json!("b"), &json!(-32601)));
    assert_eq!((&answers[2]["id"], &answers[2]["error"]["code"]), (&Value::Null, &json!(-32600)));
    assert_eq!(answers.as_array().map(Vec::len), Some(3));
    for batch in [json!([]), json!(vec![call(json!(1), "eth_chainId"); 101])] {
        assert!(post(&batch).1.contains("-32600"));
    }
    assert_eq!(post(&json!({"jsonrpc": "2.0", "method": "eth_chainId"})), (204, String::new()));
}

#[test]
fn what_is_no_request_is_refused() {
    let served = served(&[], false);
    let code = |body: &str| {
        let (status, text) = served.client.post(&[("host", "localhost"), JSON], body);
        assert_eq!(status, 200);
        let answer: Value = serde_json::from_str(&text).expect("the answer is JSON");
        answer["error"]["code"].clone()
    };
    assert_eq!(code("{"), -32700);
    assert_eq!(code(&"[".repeat(100_000)), -32700);
    assert_eq!(code("{}"), -32600);
    assert_eq!(code(r#"{"jsonrpc": "1.0", "id": 1, "method": "eth_chainId"}"#), -32600);
    assert_eq!(code(r#"{"jsonrpc": "2.0", "id": {}, "method": "eth_chainId"}"#), -32600);
    assert_eq!(code(r#"{"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": {}}"#), -32602);
    let (status, _) = served.client.post(&[("host", "localhost"), JSON], &" ".repeat((2 << 20) + 1));
    assert_eq!(status, 413);
}

#[test]
fn time_is_not_for_everybody_to_move() {
    let [payer, payee] = [Account::new(1), Account::new(2)];
    let closed = served(&[&payer], false);
    for method in ["evm_increaseTime", "evm_mine", "evm_revert", "evm_snapshot", "evm_setNextBlockTimestamp"]
    {
        let error = closed.client.ask(method, json!([1])).expect_err("it is not served");
        assert_eq!(error["code"], -32601, "{method}");
    }
    closed.client.send(&payer.pay(0, payee.address, ETHER)).expect("a signed payment is taken");
    let balance = closed.client.get("eth_getBalance", json!([payee.address, "latest"]));
    assert_eq!(balance, "0xde0b6b3a7640000");
    assert_eq!(served(&[&payer], true).client.get("evm_mine", json!([])), "0x0");
}

#[test]
fn a_server_that_is_dropped_lets_go_of_the_chain() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let open = || Chain::open(directory.path(), genesis(&[]), Sealing::Instant);
    let runtime = Runtime::new().expect("threads can be started");
    runtime.block_on(async {
        let chain = open().expect("it is new");
        let server =
            serve(chain, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).await.expect("a port is free");
        let mut stream = TcpStream::connect(server.address()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time is given");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it reads");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("it answers");
        assert_eq!(&status, b"HTTP/1.1 405");
        open().map(drop).expect_err("it is in use");
        drop(server);
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = open() {
            assert!(Instant::now() < deadline, "{error}");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(stream.read_to_end(&mut Vec::new()).map(drop).ok(), Some(()), "the connection ends");
    });
}

#[test]
fn it_is_served_to_this_machine_alone() {
    let runtime = Runtime::new().expect("threads can be started");
    let chain = Chain::in_memory(genesis(&[]), Sealing::Instant);
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    runtime.block_on(serve(chain, everywhere, false)).expect_err("it is no loopback address");
}
