# The server image: one static program and nothing else.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REPOSITORY:TAG .
#
# For every platform it is compiled on the building machine's own processor, not under emulation.
FROM --platform=$BUILDPLATFORM rust:1.95.0-bookworm AS build
ARG TARGETARCH
RUN if [ "$TARGETARCH" != "$(dpkg --print-architecture)" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends "crossbuild-essential-$TARGETARCH"; \
    fi
WORKDIR /source
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static" \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
RUN case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; *) echo "unknown: $TARGETARCH"; exit 1 ;; esac \
    && rustup target add "$machine-unknown-linux-gnu" \
    && cargo build --locked --profile dist --bin keywright --target "$machine-unknown-linux-gnu" \
    && cp "target/$machine-unknown-linux-gnu/dist/keywright" /keywright

# tests/testbed/image.py reads this stage, and makes the same image for the tests.
FROM scratch
LABEL org.opencontainers.image.title="Keywright" \
      org.opencontainers.image.description="Issues, delivers, verifies, expires and revokes API keys" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /keywright /keywright
USER 65532:65532
ENTRYPOINT ["/keywright"]
