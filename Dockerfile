# For those who prefer a container runtime: `docker build --build-arg PROGRAM=stowage-agent .` (or stowage-operator). Releases are made by `make image CUDA=1`,
# which needs none, and whose images have less in them.
FROM rust:1.95-bookworm AS build
WORKDIR /src
# For NVIDIA's compiler of kernels, which comes from PyPI.
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
COPY . .
# Both programs, so that the second image finds its own built.
RUN make cuda-kernels && STOWAGE_CUDA_KERNELS=/src/target/cuda-kernels \
    cargo build --release --locked --package stowage-operator --package stowage-agent --features stowage-agent/cuda
ARG PROGRAM=stowage-agent
RUN strip --strip-unneeded -o /program target/release/${PROGRAM}

# glibc, certificates and a user who is not root: NVML and CUDA's driver are loaded at run time, which a static program could not do.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG PROGRAM=stowage-agent
COPY --from=build /program /usr/bin/stowage
LABEL org.opencontainers.image.title=${PROGRAM} \
      org.opencontainers.image.source=https://github.com/stowage-dev/stowage \
      org.opencontainers.image.licenses=Apache-2.0
USER 65532:65532
ENTRYPOINT ["/usr/bin/stowage"]
