"""Large matrices stay in their file, and what is computed with them stays the same."""

import copy
import dataclasses
import gc
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kogpt.adapters import TARGETS, LoRAConfig, load_adapters, write_adapter
from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert, load_model
from kogpt.checkpoint.safetensors_file import SafetensorsFile, StoredRows
from kogpt.errors import InputRefusedError
from kogpt.fast import FastKoGPT, load_fast
from kogpt.fast.model import Embedding
from kogpt.kernels import Weight, extension_available
from kogpt.kernels.packing import pack, unpack
from kogpt.model import KVCache
from tests.adapters.filled import trained_lora
from tests.fast.conftest import FORMATS

SIZES = ([40], [30, *[1] * 10], [5] * 8)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at maps in Linux's /proc")
KEEPS_16_BITS = extension_available(torch.device("cpu"))  # else they are widened to float32


@pytest.fixture
def mapping(monkeypatch):
    """Makes every matrix a large one that is not packed."""
    monkeypatch.setattr("kogpt.fast.loading.MAPPED", 0)
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: False)


def files_of(fast: FastKoGPT) -> list[str | None]:
    """The file of each matrix: of the blocks in order, and the head."""
    matrices = [each.weight.values for each in fast.linears()]
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if path.startswith("/"):
            ranges.append((start, end, path))
    found = []
    for matrix in matrices:
        first = matrix.data_ptr()
        last = first + matrix.nbytes - 1
        names = [path for start, end, path in ranges if start <= first and last < end]
        found.append(names[0] if names else None)
    return found


@torch.inference_mode()
def read(model, sizes: list[int]) -> torch.Tensor:
    ids = torch.randint(8000, (2, 40), generator=torch.Generator().manual_seed(3))
    prefix = torch.tensor([model.prefix_ids], dtype=torch.long).expand(2, -1)
    cache = KVCache(60)
    rows = torch.cat((prefix, ids), dim=1)
    return torch.cat([model(part, cache).float() for part in rows.split(sizes, dim=1)], dim=1)


def assert_close(found: FastKoGPT, wanted, tolerance: float) -> None:
    """The same logits but for rounding, relative to the norm."""
    for sizes in SIZES:
        a, b = read(found, sizes), read(wanted, sizes)
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_computes_the_same_where_it_lies(box, name, request):
    folder = box(name)
    copied = load_fast(folder)
    request.getfixturevalue("mapping")
    mapped = load_fast(folder)
    blocks = mapped.transformer.blocks
    if name.startswith("int") or KEEPS_16_BITS:
        assert all(len(b.enter.linears) == 4 and len(b.leave.linears) == 2 for b in blocks)
        files = files_of(mapped)
        assert len(files) == 1 + 6 * len(blocks)
        is_here = [path is not None and path.startswith(str(folder)) for path in files]
        assert all(is_here[:-1])  # the head is float16, which is kept where there are kernels
        assert isinstance(mapped.transformer.embedding, StoredRows)
    if KEEPS_16_BITS:
        for fast in (copied, mapped):
            assert fast.transformer.has_chain
    assert all(path is None for path in files_of(copied))
    # float16 is computed in float32. Of bfloat16 two products are rounded to 8 bits before they are
    # added, where one was; of integers inputs are, with VNNI, by the whole row or its two parts.
    assert_close(mapped, copied, 1e-5 if name == "float16" else 1e-2)


@pytest.mark.parametrize("part", ["enter", "leave"])
def test_a_block_of_integers_and_floats_has_no_chain(mapping, box, part):
    block = load_fast(box("int8")).transformer.blocks[0]
    first, *others = getattr(block, part).linears
    floats = first._replace(weight=Weight(first.weight.dequantize(torch.float32)))
    mixed = dataclasses.replace(
        block, **{part: getattr(block, part)._replace(linears=(floats, *others))}
    )
    row = torch.zeros(1, 256)
    assert block.has_chain(row) == KEEPS_16_BITS and not mixed.has_chain(row)


def test_a_copy_is_made_where_the_dtype_is_another(mapping, box):
    fast = load_fast(box("bfloat16"), torch.float32)
    assert set(files_of(fast)) == {None}
    assert_close(fast, load_model(box("bfloat16"), torch.float32), 1e-5)


def test_a_pickle_is_copied(mapping, tmp_path):
    model = load_model(dtype=torch.float32)
    shutil.copy(BOX / "config.json", tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    fast = load_fast(tmp_path)
    assert set(files_of(fast)) == {None}
    assert_close(fast, model, 1e-5)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("single") / "model"
    convert(BOX, target, ConversionOptions(dtype="float32", quiet=True))
    return target


def test_tensors_that_begin_anywhere_are_copied(mapping, single, tmp_path):
    """As in files of other writers, which need not know what vector registers like."""
    shutil.copytree(single, tmp_path / "model")
    (path,) = (tmp_path / "model").glob("*.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" " * 8
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    fast = load_fast(path)
    assert set(files_of(fast)) == {None}
    assert_close(fast, load_model(single), 1e-5)


def test_a_folder_may_be_replaced_or_removed_meanwhile(mapping, single, tmp_path):
    shutil.copytree(single, tmp_path / "model")
    fast, plain = load_fast(tmp_path / "model"), load_model(single)
    shutil.rmtree(tmp_path / "model")
    assert_close(fast, plain, 1e-5)


def test_to_write_to_a_weight_is_to_write_to_a_copy(mapping, single):
    (path,) = single.glob("*.safetensors")
    before = path.read_bytes()
    fast = load_fast(single)
    weight = fast.lm_head.weight.values
    weight.zero_()
    assert load_fast(single).lm_head.weight.values.count_nonzero()
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_embeddings_are_looked_up_in_the_file(mapping, box, dtype):
    """In whatever dtype they are wanted: few rows are converted, not the table."""
    fast, plain = load_fast(box("float16"), dtype), load_model(box("float16"), dtype)
    assert isinstance(fast.transformer.embedding, StoredRows)
    ids = torch.tensor([[0, 7999, 5], [5, 5, 0]])
    found = fast.transformer.embed(ids)
    assert found.equal(plain.transformer.wte(ids).to(found.dtype))
    assert fast.transformer.embed(ids[:, :0]).shape == (2, 0, fast.config.n_embd)


def test_a_model_with_embeddings_in_a_file_is_copied_and_sent_elsewhere(mapping, single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "model")
    fast, ids = load_fast(folder), torch.tensor([[5, 6, 7]])
    assert isinstance(fast.transformer.embedding, StoredRows)
    packet, expected = pickle.dumps(fast), fast(ids)
    assert pickle.loads(packet)(ids).equal(expected)
    assert copy.deepcopy(fast)(ids).equal(expected)
    (weights,) = folder.glob("*.safetensors")
    os.utime(weights, ns=(1, 1))
    with pytest.raises(InputRefusedError, match="was changed since transformer.wte.weight was"):
        pickle.loads(packet)


@pytest.mark.parametrize("place", [-1, 8000])
def test_a_token_that_there_is_not_is_refused(mapping, box, place):
    with pytest.raises(IndexError, match=f"transformer.wte.weight has 8000 rows, none is {place}"):
        load_fast(box("bfloat16"))(torch.tensor([[5, place]]))


def test_a_file_that_was_changed_under_a_model_is_refused_by_name(mapping, single, tmp_path):
    shutil.copytree(single, tmp_path / "model")
    (path,) = (tmp_path / "model").glob("*.safetensors")
    fast, ids = load_fast(path), torch.tensor([[5, 6, 7]])
    fast(ids)
    with path.open("r+b") as file:  # as `cp` does; a file in its place would be another
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    with pytest.raises(InputRefusedError, match=f"{path}: was changed since it was loaded"):
        fast(ids)
    fast = load_fast(path)
    os.truncate(path, 8 << 10)
    with pytest.raises(InputRefusedError, match=f"{path}: was changed since it was loaded"):
        fast(ids)


def test_files_are_closed_with_the_model(mapping, single):
    def held() -> int:
        gc.collect()
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
        return sum(os.readlink(link).endswith(".safetensors") for link in links)

    before = held()
    fast = load_fast(single)
    assert held() == before + 2  # the mapping has one as well
    del fast
    assert held() == before


@pytest.mark.parametrize("name", ["bfloat16", "int8", "int4 with zero points"])
def test_updates_change_copies_of_floats_and_lie_beside_integers(mapping, box, name, tmp_path):
    model = load_model(dtype=torch.float32)
    trained_lora(model, LoRAConfig(targets=TARGETS, rank=4, alpha=0.4), seed=4)
    write_adapter(tmp_path / "lora", model)
    fast = load_fast(box(name), adapters=tmp_path / "lora")
    for path in files_of(fast)[:-1]:
        assert (path is not None) == name.startswith("int")
    plain = load_model(box(name), torch.float32)
    load_adapters(plain, tmp_path / "lora")
    bare = load_fast(box(name)), load_model(box(name), torch.float32)
    for sizes in SIZES:
        errors = [(read(a, sizes) - read(b, sizes)).norm() for a, b in ((fast, plain), bare)]
        assert errors[0] <= 1.5 * errors[1]


# --- and those of bfloat16 are packed, where that is faster ---


@pytest.fixture
def packing(monkeypatch):
    """Makes every matrix a large one, and one that is worth packing."""
    monkeypatch.setattr("kogpt.fast.loading.MAPPED", 0)
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: True)


def test_packed_weights_are_those_that_are_stored(packing, box):
    fast, plain = load_fast(box("bfloat16")), load_model(box("bfloat16"))
    matrices = [part for b in fast.transformer.blocks for part in (b.enter, b.leave)]
    assert all(len(each.linears) == 1 for each in matrices)
    for b, block in zip(fast.transformer.blocks, plain.transformer.h, strict=True):
        attn, mlp = block.attn, block.mlp
        enter = torch.cat([each.weight for each in (attn.q_proj, attn.k_proj, attn.v_proj)])
        enter = torch.cat((enter, mlp.fc_in.weight))
        leave = torch.cat((attn.out_proj.weight, mlp.fc_out.weight), dim=1)
        for part, wanted in ((b.enter, enter), (b.leave, leave)):
            assert part.linears[0].weight.bits == 12
            assert part.linears[0].weight.dequantize(torch.bfloat16).equal(wanted)
    assert fast.lm_head.weight.bits == 12
    assert fast.transformer.has_chain == KEEPS_16_BITS
    assert isinstance(fast.transformer.embedding, StoredRows)


@pytest.mark.parametrize("adapted", [False, True], ids=["", "with an adapter"])
def test_packed_weights_compute_the_same(packing, box, adapted, tmp_path, monkeypatch):
    folder, adapters = box("bfloat16"), ()
    if adapted:
        model = load_model(dtype=torch.float32)
        trained_lora(model, LoRAConfig(targets=TARGETS, rank=4, alpha=0.4), seed=4)
        write_adapter(tmp_path / "lora", model)
        adapters = tmp_path / "lora"
    fast = load_fast(folder, adapters=adapters)
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: False)
    copied = load_fast(folder, adapters=adapters)
    assert fast.lm_head.weight.bits == 12 and copied.lm_head.weight.bits == 16
    assert_close(fast, copied, 1e-2)


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_other_formats_are_not_packed(packing, box, name):
    fast = load_fast(box(name))
    assert all(b.enter.linears[0].weight.bits != 12 for b in fast.transformer.blocks)


def test_what_cannot_be_packed_stays_in_its_file(packing, box, monkeypatch):
    """One matrix of a block alone: the others of its product are not packed either."""
    monkeypatch.setattr("kogpt.fast.loading.pack", lambda weight, packed: False)
    files = files_of(load_fast(box("bfloat16")))
    assert None not in files


def test_small_matrices_are_not_packed(box, monkeypatch):
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: True)
    fast = load_fast(box("bfloat16"))
    assert fast.transformer.blocks[0].enter.linears[0].weight.bits == 16
    assert isinstance(fast.transformer.embedding, Embedding)


def bits_of(fast: FastKoGPT) -> tuple[set[int], set[int], int]:
    """Bits of the weights that blocks are entered by, that they are left by, and of the head."""
    enter, leave = (
        {each.weight.bits for b in fast.transformer.blocks for each in getattr(b, part).linears}
        for part in ("enter", "leave")
    )
    return enter, leave, fast.lm_head.weight.bits


@pytest.mark.parametrize(
    ("name", "dtype", "bits"),
    [
        ("bfloat16", torch.float32, 32),
        ("bfloat16", torch.bfloat16, 12),
        ("float16", torch.bfloat16, 12),
        ("int8", torch.bfloat16, 8),
    ],
)
def test_what_becomes_bfloat16_is_packed(packing, box, name, dtype, bits):
    """Whatever is stored; and no integers."""
    assert bits_of(load_fast(box(name), dtype)) == ({bits}, {bits}, bits)


def test_each_product_is_packed_by_its_own_inputs(packing, box, monkeypatch):
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: K == 256 + 1024)
    assert bits_of(load_fast(box("bfloat16"))) == ({16}, {12}, 16)


def test_floats_beside_integers_are_not_packed(packing, box, monkeypatch):
    is_integer = staticmethod(lambda name: name.endswith("fc_out"))
    monkeypatch.setattr("kogpt.fast.loading._Loader.is_integer", is_integer)
    assert bits_of(load_fast(box("bfloat16"))) == ({12}, {16}, 12)


@pytest.mark.parametrize(("more", "bits"), [(0, 12), (1, 16)])
def test_matrices_that_become_one_are_large_together(packing, box, more, bits, monkeypatch):
    monkeypatch.setattr("kogpt.fast.loading.MAPPED", 256 * (256 + 1024) * 2 + more)
    assert bits_of(load_fast(box("bfloat16")))[1] == {bits}


def test_what_is_packed_is_read_in_pieces_of_its_own(packing, box, monkeypatch):
    """Allocators would keep larger ones of each thread."""
    monkeypatch.setattr("kogpt.fast.loading.PACKED_PIECE", 100_000)
    sizes = []

    def note(weight, place):
        sizes.append(weight.nbytes)
        return pack(weight, place)

    monkeypatch.setattr("kogpt.fast.loading.pack", note)
    load_fast(box("bfloat16"))
    assert 50_000 < max(sizes) <= 100_000


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_matrices_may_be_read_in_pieces(box, packed, monkeypatch):
    monkeypatch.setattr("kogpt.fast.loading.MAPPED", 0 if packed else sys.maxsize)
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: packed)
    whole = load_fast(box("bfloat16"))
    for name in ("PIECE", "PACKED_PIECE"):
        monkeypatch.setattr(f"kogpt.fast.loading.{name}", 100_000)
    pieces = load_fast(box("bfloat16"))
    for a, b in zip(whole.linears(), pieces.linears(), strict=True):
        assert (b.weight.bits == 12) == packed
        wanted, found = (
            unpack(each) if packed else each for each in (a.weight.values, b.weight.values)
        )
        assert found.equal(wanted)


def test_rows_are_those_of_the_file_that_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    for value in (1.0, 2.0):
        save_file({"w": torch.full((3, 4), value)}, tmp_path / f"{value}")
    (tmp_path / "1.0").rename(path)
    file = SafetensorsFile(path)
    (tmp_path / "2.0").rename(path)
    rows = file.rows("w")
    file.close()
    assert rows(torch.tensor([2])).tolist() == [[1.0] * 4]
