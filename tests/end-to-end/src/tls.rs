//! Listens for HTTPS on this machine, as `localhost`, with a certificate that nobody vouches for but itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    /// The certificate, as PEM.
    pub certificate: String,
}

impl Tls {
    /// On a free port.
    pub async fn bind() -> Result<Tls> {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).context("making a certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key)?;
        let tcp = TcpListener::bind("127.0.0.1:0").await.context("binding an HTTPS server")?;
        Ok(Tls { tcp, acceptor: TlsAcceptor::from(Arc::new(config)), certificate: certified.cert.pem() })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.tcp.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.address()
    }
}
