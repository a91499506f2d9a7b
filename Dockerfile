# The server as an image, for arm64 and amd64:
#
#   docker build --tag edge .
#   docker run --rm --publish 8080:8080 --volume edge:/var/lib/edge --volume /models:/models:ro edge /models/model.gguf
#
# llama.cpp is compiled for the CPU that builds; for an image that travels see docs/service.md. Compiled wheels stay in
# the builder's cache, so a change of Python code compiles nothing again.
#
# Debian keeps one version of a package: a pinned one is gone with the next security fix.
# hadolint global ignore=DL3008

ARG BASE=debian:12-slim

FROM ${BASE} AS build
RUN apt-get update && \
    apt-get install --yes --no-install-recommends build-essential python3 python3-venv && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /opt/edge
COPY . .
ARG CMAKE_ARGS=""
RUN --mount=type=cache,target=/var/cache/edge \
    EDGE_CACHE=/var/cache/edge bash scripts/setup.sh --no-dev

FROM ${BASE}
RUN apt-get update && \
    apt-get install --yes --no-install-recommends libgomp1 libstdc++6 python3 && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --home-dir /var/lib/edge --create-home --shell /usr/sbin/nologin edge
COPY --from=build /opt/edge /opt/edge
# every option of `edge serve` has such a twin: EDGE_SERVE_API_KEY, EDGE_SERVE_PORT
ENV PATH=/opt/edge/.venv/bin:$PATH \
    EDGE_SERVE_HOST=0.0.0.0 \
    XDG_CACHE_HOME=/var/lib/edge/cache \
    XDG_CONFIG_HOME=/var/lib/edge/config \
    XDG_DATA_HOME=/var/lib/edge/data \
    XDG_STATE_HOME=/var/lib/edge/state \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/lib/edge
VOLUME /var/lib/edge
EXPOSE 8080
# loading a large model from an SD card takes minutes
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 CMD ["python", "-c", "\
import os, urllib.request; \
urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('EDGE_SERVE_PORT', '8080') + '/health', timeout=4)"]
ENTRYPOINT ["edge", "serve"]
