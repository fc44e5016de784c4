# ollm_rl on a machine with an NVIDIA GPU.
#
#   docker build -t ollm_rl .
#   docker run --rm --gpus all ollm_rl doctor
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/work/runs" -v ollm_cache:/cache ollm_rl train agent=grpo name=first
#
# Without a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.11.13-slim-bookworm

# A C compiler: Triton and the decode steps' kernels (ollm_rl/models/kernels.c) are compiled when they are first needed.
# The versions are those of the image's Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/ollm_rl

# Dependencies first, so that an edit of the code does not install them again. torch brings CUDA's libraries with it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH=2.13.0
ARG EXTRAS=rllib,trl,tune,code,serve
COPY constraints.txt pyproject.toml README.md LICENSE ./
# A torch of a CUDA index calls itself 2.13.0+cu128, which the pin allows.
RUN pip install --no-cache-dir "torch==${TORCH}" --index-url "${TORCH_INDEX}" \
    && mkdir ollm_rl envs agents configs \
    && touch ollm_rl/__init__.py envs/__init__.py agents/__init__.py configs/__init__.py \
    && pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && pip uninstall --yes ollm_rl \
    && rm -rf ollm_rl envs agents configs build ./*.egg-info

COPY configs configs
COPY ollm_rl ollm_rl
COPY envs envs
COPY agents agents
RUN pip install --no-cache-dir --no-deps .

# Models, plug-ins and hidden states; a volume there keeps them. Nothing runs as root.
ENV OLLM_RL_CACHE=/cache HF_HOME=/cache/huggingface
RUN useradd --create-home --uid 1000 ollm && mkdir -p /cache /work/runs && chown -R ollm /cache /work
USER 1000
WORKDIR /work
ENTRYPOINT ["ollm-rl"]
CMD ["doctor"]
