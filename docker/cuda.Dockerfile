# unloc on NVIDIA GPUs. PyTorch's wheels include CUDA's libraries; the base image only makes the driver visible.
#   docker build -f docker/cuda.Dockerfile -t unloc:cuda .
#   docker run --rm --gpus all --entrypoint python unloc:cuda -c 'import torch; print(torch.cuda.get_device_name())'
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    PATH=/opt/venv/bin:$PATH

# `ray up` needs the last three in a node's container.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv openssh-client procps rsync \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/unloc
# hadolint ignore=DL3013
RUN python3 -m venv /opt/venv && pip install "torch>=2.11" "torchvision>=0.26"
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
