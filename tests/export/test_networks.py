"""Every architecture keeps the contract of networks; so does one that is nothing like DAMP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from export.networks import ARCHITECTURES, Network, network_of
from export.networks.damp import Damp, DampConfig
from tests.contracts.network import NetworkContract
from tests.contracts.stranger import DISPERSER, STRANGER, disperser, stranger

CONFIG = DampConfig(
    bands=5,
    dim=8,
    heads=(2, 2, 2, 2),
    encoder_blocks=(1, 0, 0, 1),
    decoder_blocks=(1, 1, 0),
    refinement_blocks=0,
    expansion=2,
    experts=3,
    embedding=16,
)


def damp(config: DampConfig) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Damp(config).eval()
        torch.nn.init.normal_(net.output.weight, 0, 0.02)
    return network_of(net)


class TestDamp(NetworkContract):
    OPTIONS = {"top_k": 1}  # noqa: RUF012

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        return damp(CONFIG)

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        return damp(dataclasses.replace(CONFIG, bands=3, dim=16, metric_set="paper6", gate="concat"))


class TestStranger(NetworkContract):
    ARCHITECTURE, MADE = STRANGER, staticmethod(stranger)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def known(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ARCHITECTURES, cls.ARCHITECTURE.id, cls.ARCHITECTURE)
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        return cls.MADE()

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        return cls.MADE(width=24, seed=1)


class TestOneFrameOnly(TestStranger):
    ARCHITECTURE, MADE = DISPERSER, staticmethod(disperser)
