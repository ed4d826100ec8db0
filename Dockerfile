# The two commands of README.md in a container:
#   docker build --tag alexnet .
#   docker run --rm --shm-size=2g alexnet                 # make repro
#   docker run --rm --shm-size=2g alexnet make test
# Ray keeps its objects in /dev/shm, of which a container has 64 MB by default.
FROM python:3.11-slim-bookworm

# make and git for the workflow, iproute2 and procps for the tests of sockets and processes
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git iproute2 make procps \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home alexnet
USER alexnet
WORKDIR /home/alexnet/alexnet

# the environment first: it changes with the lock alone
COPY --chown=alexnet Makefile requirements.lock ./
COPY --chown=alexnet .dvc/site.pth .dvc/rwlock.py .dvc/alexnet .dvc/
RUN make .venv/ready

COPY --chown=alexnet . .
CMD ["make", "repro"]
