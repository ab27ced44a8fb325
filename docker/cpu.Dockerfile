# unloc on CPUs: a node of a Ray cluster, or one machine.
#   docker build -f docker/cpu.Dockerfile -t unloc:cpu .
# By default pip installs PyTorch from its configured index, with CUDA's libraries (6 GB). With the index of CPU builds
# (see PyTorch's installation page) the image is five times smaller: --build-arg TORCH_INDEX=URL.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1

# `ray up` needs these in a node's container.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client procps rsync \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/unloc
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11" "torchvision>=0.26"
COPY pyproject.toml README.md LICENSE ./
# An empty package brings its dependencies: an edit of the source leaves this layer as it is.
# hadolint ignore=DL3013
RUN mkdir manifests pipeline unloc && touch pipeline/__init__.py unloc/__init__.py \
    && pip install ".[s3,hdf5,track,cluster]" && rm -r manifests pipeline unloc
COPY manifests ./manifests
COPY pipeline ./pipeline
COPY unloc ./unloc
# hadolint ignore=DL3013
RUN pip install --no-deps --force-reinstall . && useradd --create-home --uid 10001 unloc

USER 10001
WORKDIR /home/unloc
ENTRYPOINT ["unloc"]
CMD ["--help"]
