"""How memory of the CPU is had from the system, and goes back to it, in this whole process."""

import ctypes
import os

HUGE_PAGE = 2 << 20  # bytes; PyTorch asks for none on behalf of smaller blocks
M_MMAP_THRESHOLD = -3  # of malloc.h


def use_huge_pages() -> None:
    """Has PyTorch ask Linux for huge pages, unless the user has said whether it should.

    What a step takes it gives back, and takes again in the next: a huge page comes by one fault,
    the same memory in small ones by 512. PyTorch reads the variable when it first takes memory of
    the CPU, so this has to come before.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_memory_back() -> None:
    """Has blocks from the size of a huge page go back to the system as they are freed.

    Of itself glibc soon keeps blocks of up to 32 MiB in a heap, where those that come and go leave
    holes between those that stay: what was forgotten would be taken all the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, HUGE_PAGE)
