"""Which optimiser has which parameter, with which options."""

import copy
import json
from functools import partial

import pytest
import torch

from pgolf.app import build
from pgolf.app.compose import jobs_of
from pgolf.optim.adam import AdamW
from pgolf.optim.muon import Muon
from pgolf.optim.mup import WidthScaling
from pgolf.optim.roles import NameRule, RoleOptimizers
from tests.optim.small import DIM, POLAR, Net, optimisers
from tests.support import GOLDEN
