# For those who prefer a container runtime: `docker build --build-arg PROGRAM=stowage-agent .` (or stowage-operator). Releases are made by `make image`,
# which needs none, and whose images have less in them.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ARG PROGRAM=stowage-agent
RUN cargo build --release --locked --package ${PROGRAM} && strip --strip-unneeded -o /program target/release/${PROGRAM}

# glibc, certificates and a user who is not root: NVML is loaded at run time, which a static program could not do.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG PROGRAM=stowage-agent
COPY --from=build /program /usr/bin/stowage
LABEL org.opencontainers.image.title=${PROGRAM} \
      org.opencontainers.image.source=https://github.com/stowage-dev/stowage \
      org.opencontainers.image.licenses=Apache-2.0
USER 65532:65532
ENTRYPOINT ["/usr/bin/stowage"]
