# deepinfer as an image: the control plane, an agent, etcd or a command, by what it is told. compose.yaml runs them.
# Nothing here is BuildKit's own: the classic builder makes the same image.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS installed
# "layer-shard" for the engine that computes in this image itself, with torch; engines in containers need nothing here.
ARG EXTRAS=
# Where torch comes for machines without a GPU, in a tenth of what PyPI's takes. Asked for torch alone.
ARG TORCH_INDEX=
RUN python -m venv /opt/deepinfer
WORKDIR /src
# First what deepinfer needs, with nothing of it there: a change of the source does not fetch torch again.
COPY pyproject.toml README.md ./
RUN case "$EXTRAS" in *layer-shard*) /opt/deepinfer/bin/pip install --no-cache-dir --no-deps \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(grep -o 'torch==[0-9.]*' pyproject.toml)";; esac
RUN mkdir deepinfer && touch deepinfer/__init__.py \
    && /opt/deepinfer/bin/pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"
COPY deepinfer ./deepinfer
RUN /opt/deepinfer/bin/pip install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/deepinfer --shell /usr/sbin/nologin deepinfer \
    && install -d -m 0700 -o deepinfer /var/lib/deepinfer /var/lib/deepinfer/etcd /var/cache/deepinfer
COPY --from=installed /opt/deepinfer /opt/deepinfer
ENV PATH=/opt/deepinfer/bin:$PATH PYTHONUNBUFFERED=1 \
    HOME=/var/lib/deepinfer XDG_DATA_HOME=/var/lib XDG_CACHE_HOME=/var/cache
USER deepinfer
WORKDIR /var/lib/deepinfer
ENTRYPOINT ["deepinfer"]
CMD ["--help"]
