"""A PTX interpreter: the instructions that Triton emits for this library, and no others (an unknown one is an error).

A program is cut into basic blocks, and each block is translated once into a Python function of NumPy operations. A
register is an array over the 32 lanes of one warp of many CTAs side by side ("slot" w: warp w of every CTA of a batch).
Slots run one after the other, in a seeded random order, up to a barrier; within a slot, the lowest block of any lane
runs first, under a mask. So each interval between two barriers is a legal interleaving in which some warp is ahead of
all others, and a missing barrier shows in the result as well as in the log of accesses, which is searched for races.

Global memory is the memory of the host's tensors. What an access needs: to lie inside one range that was registered
for the launch, to be aligned, and in shared memory to read nothing that no thread has written.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

U32, S32, F32 = np.uint32, np.int32, np.float32
U64, S64, F64 = np.uint64, np.int64, np.float64
U16, S16, F16 = np.uint16, np.int16, np.float16
DTYPES = {
    "u8": np.uint8, "s8": np.int8, "b8": np.uint8, "u16": U16, "s16": S16, "b16": U16, "f16": F16, "bf16": U16,
    "u32": U32, "s32": S32, "b32": U32, "f32": F32, "u64": U64, "s64": S64, "b64": U64, "f64": F64, "pred": np.bool_,
}  # fmt: skip
# The list of views that a register of a class is found in, by the dtype it is looked at as.
VIEWS = {
    np.bool_: "P", U16: "H", S16: "K", F16: "E", U32: "U", S32: "I", F32: "F", U64: "L", S64: "J", F64: "D",
}  # fmt: skip
CLASS_BITS = {"pred": 1, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "b32": 32, "u32": 32, "s32": 32, "f32": 32,
              "b64": 64, "u64": 64, "s64": 64, "f64": 64}  # fmt: skip
WIDE = {"u32": "u64", "s32": "s64", "u16": "u32", "s16": "s32"}
BITS = {bits: (getattr(np, f"uint{bits}"), getattr(np, f"int{bits}")) for bits in (8, 16, 32, 64)}
# The lanes of a slot: as many CTAs side by side as make NumPy's overhead small, in the cache.
LANES = 2048
REGISTER_BYTES = 128 << 20


class MachineError(Exception):
    """What the interpreter does not know, or what no hardware would go on after."""


# Arithmetic that is no single ufunc -----------------------------------------------------------------------------------


def flush(x):
    """.ftz: subnormal float32 to zero of the same sign; rcp's float64 likewise."""
    least = 2.0**-126 if x.dtype == F32 else 2.0**-1022
    return np.where(np.abs(x) < least, np.copysign(x.dtype.type(0), x), x)


def fma64(a, b, c):
    """Float64 FMA from error-free transformations (Dekker, Knuth): right but for the last rounding of the three parts,
    which differs from the hardware's once in about 2^50."""
    a, b, c = F64(a), F64(b), F64(c)
    p = a * b
    t = a * 134217729.0
    ah = t - (t - a)
    al = a - ah
    t = b * 134217729.0
    bh = t - (t - b)
    bl = b - bh
    low = ((ah * bh - p) + ah * bl + al * bh) + al * bl
    s = p + c
    t = s - p
    rest = (p - (s - t)) + (c - t) + low
    return np.where(np.isfinite(rest), s + rest, s)


def to_bf16(x):
    bits = np.ascontiguousarray(x, F32).view(U32)
    even = (bits + (((bits >> U32(16)) & U32(1)) + U32(0x7FFF))) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), even).astype(U16)


def from_bf16(h):
    return (h.astype(U32) << U32(16)).view(F32)


def jitter(x, seed):
    """A number of [-1, 1] for each x, the same for the same x: hardware approximates alike wherever it is asked."""
    bits = x.view(U32 if x.dtype == F32 else U64).astype(U64) * U64(0x9E3779B97F4A7C15) + U64(seed)
    bits = (bits ^ (bits >> U64(29))) * U64(0xBF58476D1CE4E5B9)
    return (bits >> U64(11)).astype(F64) * 2.0**-52 - 1


# The bounds of the PTX ISA, less half a unit of the result for the rounding that is added here.
def ex2(x, seed, ftz):
    x = flush(x) if ftz else x
    y = np.exp2(x.astype(F64))
    if seed is not None:
        y = np.where(x == np.rint(x), y, y * (1 + jitter(x, seed) * (2.0**-22 - 2.0**-24)))
    y = y.astype(F32)
    return flush(y) if ftz else y


def lg2(x, seed, ftz):
    x = flush(x) if ftz else x
    y = np.log2(x.astype(F64))
    if seed is not None:
        error = jitter(x, seed) * (2.0**-22 - 2.0**-24)
        y = np.where((x > 0.5) & (x < 2), y + error, y * (1 + error))
    y = y.astype(F32)
    return flush(y) if ftz else y


def div_full(a, b, seed, ftz):
    a, b = (flush(a), flush(b)) if ftz else (a, b)
    q = a.astype(F64) / b.astype(F64)
    if seed is not None:
        # 2 units of the last place of the quotient; a divisor that is a power of two has an exact reciprocal.
        exact = np.frexp(b)[0] == 0.5
        q = np.where(exact, q, q * (1 + jitter(np.asarray(q), seed) * (1.5 * 2.0**-24)))
    q = q.astype(F32)
    return flush(q) if ftz else q


def rcp_f64(x, seed):
    """rcp.approx.ftz.f64: 20 bits of the mantissa, the low word is 0."""
    y = 1 / flush((x.view(U64) & U64(0xFFFFFFFF00000000)).view(F64))
    if seed is not None:
        y = y * (1 + jitter(x, seed) * 2.0**-21)
    return flush((np.asarray(y).view(U64) & U64(0xFFFFFFFF00000000)).view(F64))


def div_int(a, b):
    """Truncated; of a division by 0 the ISA says nothing."""
    return (a - np.fmod(a, b)) // b


def prmt(a, b, selector):
    """Without a mode: byte i of the result is byte s_i of b:a, or its sign where bit 3 of s_i is set."""
    a, b, selector = np.broadcast_arrays(U32(a), U32(b), U32(selector))
    word = a.astype(U64) | b.astype(U64) << U64(32)
    out = np.zeros(a.shape, U32)
    for i in range(4):
        s = (selector >> U32(4 * i)) & U32(15)
        byte = ((word >> ((s & U32(7)).astype(U64) * U64(8))) & U64(255)).astype(U32)
        sign = np.where(byte & U32(128), U32(255), U32(0))
        out |= np.where(s & U32(8), sign, byte) << U32(8 * i)
    return out


def bfe(a, position, length):
    """Bit field of constant place; sign-extended where `a` is signed."""
    bits = 8 * a.dtype.itemsize
    position, length = int(position) & 255, int(length) & 255
    if position + length > bits or not length:
        raise MachineError("bfe beyond the register")
    return np.right_shift(np.left_shift(a, a.dtype.type(bits - position - length)), a.dtype.type(bits - length))


def compare(op, a, b):
    """`ne` and the other ordered ones are False beside a NaN, those with a u True."""
    floating = np.asarray(a).dtype.kind == "f" or np.asarray(b).dtype.kind == "f"
    if not floating or op in ("eq", "lt", "le", "gt", "ge"):
        return {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
                "ge": np.greater_equal}[op](a, b)  # fmt: skip
    if op == "ne":
        return (a < b) | (a > b)
    if op in ("nan", "num"):
        nan = np.isnan(a) | np.isnan(b)
        return nan if op == "nan" else ~nan
    return ~{"equ": lambda: (a < b) | (a > b), "neu": lambda: a == b, "ltu": lambda: a >= b, "leu": lambda: a > b,
             "gtu": lambda: a <= b, "geu": lambda: a < b}[op]()  # fmt: skip


# Translation ----------------------------------------------------------------------------------------------------------


@dataclass
class Instruction:
    line: int
    text: str
    guard: str | None
    opcode: str
    args: list[str]


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    # ("go", target), ("if", predicate, negated, target), ("bar",) or ("ret",); blocks follow each other.
    end: tuple = ("go", None)
    # Whether it starts with an instruction that waits for the whole warp.
    converges: bool = False
    function: object = None
    counts: Counter = field(default_factory=Counter)


def _arguments(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[") - (c in "}]")
        if c == "," and not depth:
            out.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*out, last] if last else out


def _kind(opcode: str) -> str:
    """The class that an instruction is counted in."""
    name, *mods = opcode.split(".")
    if name in ("ld", "st"):
        space = next((m for m in mods if m in ("global", "shared", "param")), "?")
        return "param" if space == "param" else f"{name}.{space}"
    if name in ("ex2", "lg2", "rcp", "sqrt", "rsqrt") or opcode.startswith("div.full"):
        return "approx"
    if name in ("shfl", "redux", "bar", "cvt", "mov", "ldmatrix", "stmatrix"):
        return name
    if name in ("bra", "ret"):
        return "branch"
    if name in ("setp", "selp") or mods[-1] == "pred":
        return "pred"
    return {"f64": "fp64", "f32": "fp32", "f16": "fp16", "bf16": "fp16"}.get(mods[-1], "int")


class Program:
    """The one kernel of a PTX text, ready to run."""

    def __init__(self, ptx: str) -> None:
        ptx = ptx.replace(".shared::cta", ".shared")  # without clusters, the same
        self.name = re.search(r"\.entry\s+([\w$]+)", ptx)[1]
        self.params = [
            (name, CLASS_BITS[kind] // 8)
            for kind, name in re.findall(r"\.param\s+\.(\w+)(?:\s+\.ptr[^,)]*?)?\s+([\w$]+_param_\d+)", ptx)
        ]
        self.threads = int(re.search(r"\.reqntid\s+(\d+)", ptx)[1])
        self.used = False
        # name -> (bits, number); one frame for each open scope.
        self.scopes: list[dict[str, tuple[int, int]]] = [{}]
        self.registers = dict.fromkeys((1, 16, 32, 64), 0)
        self.constants: dict[str, object] = {}
        body = ptx[ptx.index("\n{", ptx.index(".entry")) + 2 : ptx.rindex("}")]
        first = ptx[: ptx.index(body)].count("\n") + 1
        self.blocks = self._blocks(body, first)
        self.code = self._compile()

    # Parsing

    def _declare(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()
        bits = CLASS_BITS[kind]
        for name in names.split(","):
            many = re.match(r"\s*(\S+?)<(\d+)>", name)
            for one in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]:
                self.scopes[-1][one] = (bits, self.registers[bits])
                self.registers[bits] += 1

    def _register(self, name: str) -> tuple[int, int] | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def _blocks(self, body: str, first: int) -> list[Block]:
        blocks, labels, at, line = [Block()], {}, 0, first
        body = re.sub(r"//[^\n]*", "", body)
        body = re.sub(r"^\s*\.(loc|file)\b[^\n]*", "", body, flags=re.M)
        while at < len(body):
            c = body[at]
            if c.isspace():
                line += c == "\n"
                at += 1
                continue
            if c == "{":
                self.scopes.append({})
                at += 1
                continue
            if c == "}":
                self.scopes.pop()
                at += 1
                continue
            if label := re.compile(r"([$\w]+):(?!:)").match(body, at):
                if blocks[-1].instructions:
                    blocks.append(Block())
                labels[label[1]] = len(blocks) - 1
                at = label.end()
                continue
            stop = body.index(";", at)
            text = " ".join(body[at:stop].split())
            start = line
            line += body[at:stop].count("\n")
            at = stop + 1
            if text.startswith(".reg"):
                self._declare(text)
            elif not text.startswith(".pragma"):
                guard, opcode, rest = re.match(r"(@!?\S+\s+)?([a-z][\w.:]*)\s*(.*)", text).groups()
                args = [self._operand(a) for a in _arguments(rest)] if opcode.split(".")[0] != "bra" else [rest]
                instruction = Instruction(start, text, self._operand(guard.strip()) if guard else None, opcode, args)
                if ".sync" in opcode and not blocks[-1].converges:
                    if blocks[-1].instructions:
                        blocks.append(Block())
                    blocks[-1].converges = True
                blocks[-1].instructions.append(instruction)
                if opcode.split(".")[0] in ("bra", "ret") or opcode == "bar.sync":
                    blocks.append(Block())
        if not blocks[-1].instructions:
            blocks.append(Block())
        for block in blocks:
            last = block.instructions[-1] if block.instructions else None
            name = last.opcode.split(".")[0] if last else ""
            if name == "bra":
                target = labels[last.args[0]]
                guard = last.guard
                block.end = ("if", guard.strip("@!"), "!" in guard, target) if guard else ("go", target)
            elif name == "ret":
                if last.guard:
                    raise MachineError(f"guarded: {last.text}")
                block.end = ("ret",)
            elif last and last.opcode == "bar.sync":
                if last.args != ["0"] or last.guard:
                    raise MachineError(f"unknown barrier: {last.text}")
                block.end = ("bar",)
            block.counts = Counter(_kind(i.opcode) for i in block.instructions)
        return blocks

    def _operand(self, text: str) -> str:
        """Registers as bits:number, which no scope can change any more."""

        def resolve(match: re.Match) -> str:
            found = self._register(match[0])
            return f"<{found[0]}:{found[1]}>" if found else match[0]

        return re.sub(r"%?[A-Za-z_$][\w$]*(?:\.[xyz])?", resolve, text)

    # Translation into Python

    def _constant(self, value: object) -> str:
        key = f"c{len(self.constants)}"
        self.constants[key] = value
        return key

    def _source(self, text: str, kind: str) -> str:
        """An expression for an operand as `kind`."""
        dtype = DTYPES[kind]
        if match := re.fullmatch(r"<(\d+):(\d+)>", text):
            bits, number = int(match[1]), int(match[2])
            if kind == "pred":
                return f"P[{number}]"
            wanted = 8 * np.dtype(dtype).itemsize
            if bits == wanted:
                return f"{VIEWS[dtype]}[{number}]"
            if bits > wanted:
                return f"{VIEWS[BITS[bits][0]]}[{number}].astype(np.{dtype.__name__})"
            raise MachineError(f"{kind} of a register of {bits} bits")
        if text.startswith("%"):
            return f"M.special[{text!r}]"
        if text.startswith("global_smem"):
            return self._constant(dtype(int(text[len("global_smem") :] or "0")))
        if text.startswith(("0f", "0F")):
            return self._constant(np.array(int(text[2:], 16), U32).view(F32 if kind == "f32" else U32)[()])
        if text.startswith(("0d", "0D")):
            return self._constant(np.array(int(text[2:], 16), U64).view(F64 if kind == "f64" else U64)[()])
        number = int(text.rstrip("U"), 0)
        if kind == "pred":
            return self._constant(np.bool_(number))
        if dtype in (F32, F64, F16):
            return self._constant(dtype(number))
        bits = 8 * np.dtype(dtype).itemsize
        return self._constant(np.array(number % 2**bits, BITS[bits][0]).view(dtype)[()])

    def _target(self, text: str, kind: str) -> str:
        """The array of a destination. A register wider than `kind` is extended as `kind`'s sign says."""
        match = re.fullmatch(r"<(\d+):(\d+)>", text)
        if not match:
            raise MachineError(f"no register: {text}")
        bits, number = int(match[1]), int(match[2])
        dtype = DTYPES[kind]
        if kind == "pred" or 8 * np.dtype(dtype).itemsize == bits:
            return f"{VIEWS[dtype]}[{number}]"
        return f"{VIEWS[BITS[bits][kind[0] == 's']]}[{number}]"

    def _compile(self) -> object:
        lines = []
        for number, block in enumerate(self.blocks):
            lines += [f"def block{number}(M, R, m):", "  P, H, K, E, U, I, F, L, J, D = R"]
            for instruction in block.instructions:
                if instruction.opcode.split(".")[0] in ("bra", "ret") or instruction.opcode == "bar.sync":
                    continue
                mask = "m"
                if instruction.guard:
                    number_of = re.search(r":(\d+)", instruction.guard)[1]
                    lines.append(f"  k = {'~' * ('!' in instruction.guard)}P[{number_of}] & m")
                    mask = "k"
                try:
                    lines += [f"  {line}" for line in self._translate(instruction, mask)]
                except (MachineError, KeyError, ValueError, IndexError) as error:
                    raise MachineError(f"{self.name}, line {instruction.line}: {instruction.text}: {error!r}") from None
            lines.append("  return")
        space = {**globals(), **self.constants}
        exec(compile("\n".join(lines), f"<{self.name}>", "exec"), space)
        for number, block in enumerate(self.blocks):
            block.function = space[f"block{number}"]
        return "\n".join(lines)

    def _translate(self, instruction: Instruction, k: str) -> list[str]:
        opcode, a, line = instruction.opcode, instruction.args, instruction.line
        name, *mods = opcode.split(".")
        kind = mods[-1] if mods else ""
        mods = mods[:-1]
        source, target = self._source, self._target

        def put(value: str, to: str | None = None, as_kind: str = kind) -> list[str]:
            return [f"np.copyto({target(to or a[0], as_kind)}, {value}, where={k}, casting='unsafe')"]

        def only(*allowed: str) -> None:
            if set(mods) - set(allowed):
                raise MachineError(f"unknown modifier in {opcode}")

        def ufunc(f: str, *sources: str, as_kind: str = kind) -> list[str]:
            return [f"np.{f}({', '.join(sources)}, out={target(a[0], as_kind)}, where={k})"]

        floating = kind in ("f32", "f64")
        if kind == "f32x2":
            return self._pairs(instruction, k)
        if name in ("add", "sub", "fma") and mods == ["rn", "f32"] and kind in ("bf16", "f16"):
            # Half precision beside float32, from sm_100 on.
            first, *second = (f"{'from_bf16' if kind == 'bf16' else 'F32'}({source(one, kind)})" for one in a[1:-1])
            x = source(a[-1], "f32")
            if name == "fma":
                return put(f"np.multiply({first}, {second[0]}, dtype=F64) + {x}", as_kind="f32")
            return put(f"np.{'add' if name == 'add' else 'subtract'}({first}, {x})", as_kind="f32")
        if opcode == "add.s16x2":
            x, y = (f"np.ascontiguousarray({source(one, 'b32')}).view(U16)" for one in a[1:])
            return put(f"np.add({x}, {y}).view(U32)", as_kind="b32")
        if opcode == "bar.warp.sync":
            return [f"M.members({line}, {k}, {source(a[0], 'b32')})", f"M.interval[{k}] += 1"]
        if name in ("ld", "st"):
            return self._memory(instruction, k)
        if name == "mov":
            return self._move(instruction, k)
        if name == "cvt":
            return self._convert(instruction, k)
        if name in ("add", "sub") or (name == "mul" and (floating or "lo" in mods)):
            only("rn", "lo")
            f = {"add": "add", "sub": "subtract", "mul": "multiply"}[name]
            return ufunc(f, source(a[1], kind), source(a[2], kind))
        if opcode in ("mul.wide.u32", "mul.wide.s32", "mul.wide.u16", "mul.wide.s16"):
            wide = WIDE[kind]
            x, y = source(a[1], kind), source(a[2], kind)
            return [f"np.multiply({x}, {y}, out={target(a[0], wide)}, where={k}, dtype=np.{DTYPES[wide].__name__})"]
        if name == "mad" and mods == ["lo"]:
            return put(f"{source(a[1], kind)} * {source(a[2], kind)} + {source(a[3], kind)}")
        if name == "mad" and mods == ["wide"]:
            wide = WIDE[kind]
            product = f"np.multiply({source(a[1], kind)}, {source(a[2], kind)}, dtype=np.{DTYPES[wide].__name__})"
            return put(f"{product} + {source(a[3], wide)}", as_kind=wide)
        if name == "fma":
            only("rn", "ftz")
            x, y, z = (source(one, kind) for one in a[1:])
            if kind == "f64":
                return put(f"fma64({x}, {y}, {z})")
            if kind != "f32":
                raise MachineError("fma of this type")
            # In float64 the product is exact; the sum is rounded twice, which differs once in 2^29.
            if "ftz" in mods:
                x, y, z = (f"flush(np.asarray({one}))" for one in (x, y, z))
                return put(f"flush((np.multiply({x}, {y}, dtype=F64) + {z}).astype(F32))")
            return [f"t = np.multiply({x}, {y}, dtype=F64)", f"t = t + {z}", *put("t")]
        if name == "div" and "full" in mods:
            only("full", "ftz")
            x, y = source(a[1], kind), source(a[2], kind)
            return put(f"div_full({x}, {y}, M.jitter, {'ftz' in mods})")
        if name == "div" and floating:
            only("rn")
            return ufunc("divide", source(a[1], kind), source(a[2], kind))
        if name in ("div", "rem"):
            only()
            f = "div_int" if name == "div" else "np.fmod"
            return put(f"{f}({source(a[1], kind)}, {source(a[2], kind)})")
        if name in ("min", "max"):
            only()
            f = "f" + name if floating else name + "imum"
            out = ufunc(f, source(a[1], kind), source(a[2], kind))
            for more in a[3:]:
                out += [f"np.{f}({source(a[0], kind)}, {source(more, kind)}, out={target(a[0], kind)}, where={k})"]
            return out
        if name in ("and", "or", "xor"):
            return ufunc(f"bitwise_{name}", source(a[1], kind), source(a[2], kind))
        if name == "not":
            return ufunc("invert", source(a[1], kind))
        if name in ("neg", "abs"):
            only("ftz")
            if "ftz" in mods:
                return put(f"{'-' if name == 'neg' else 'np.abs'}(flush({source(a[1], kind)}))")
            return ufunc("negative" if name == "neg" else "absolute", source(a[1], kind))
        if name in ("shl", "shr"):
            # A count of all bits or more leaves nothing (or the sign), which is what NumPy gives.
            count = source(a[2], "u32")
            f = "left_shift" if name == "shl" else "right_shift"
            return put(f"np.{f}({source(a[1], kind)}, np.minimum({count}, U32(64)).astype(np.{DTYPES[kind].__name__}))")
        if name == "setp":
            only("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "nan", "num")
            return put(f"compare({mods[0]!r}, {source(a[1], kind)}, {source(a[2], kind)})", as_kind="pred")
        if name == "selp":
            only()
            return put(f"np.where({source(a[3], 'pred')}, {source(a[1], kind)}, {source(a[2], kind)})")
        if name in ("ex2", "lg2"):
            only("approx", "ftz")
            if kind != "f32":
                raise MachineError("only float32")
            return put(f"{name}({source(a[1], kind)}, M.jitter, {'ftz' in mods})")
        if opcode == "rcp.approx.ftz.f64":
            return put(f"rcp_f64({source(a[1], kind)}, M.jitter)")
        if name == "prmt" and not mods:
            return put(f"prmt({source(a[1], kind)}, {source(a[2], kind)}, {source(a[3], kind)})")
        if name == "bfe":
            return put(f"bfe({source(a[1], kind)}, {int(a[2], 0)}, {int(a[3], 0)})")
        if opcode in ("shfl.sync.bfly.b32", "shfl.sync.idx.b32"):
            if a[3] != "31" or "|" in a[0]:
                raise MachineError("a segment, or a predicate")
            other = f"M.lane ^ {source(a[2], 'b32')}" if "bfly" in opcode else source(a[2], "b32")
            return [
                f"M.members({line}, {k}, {source(a[4], 'b32')})",
                *put(f"M.shuffle({source(a[1], kind)}, {other})"),
            ]
        if name == "redux" and mods in (["sync", "min"], ["sync", "max"]):
            f = f"np.f{mods[1]}" if kind == "f32" else f"np.{mods[1]}imum"
            return [f"M.members({line}, {k}, {source(a[2], 'b32')})", *put(f"M.reduce({f}, {source(a[1], kind)})")]
        if name in ("ldmatrix", "stmatrix") and opcode.endswith(".shared.b16") and {"aligned", "m8n8"} <= {*mods}:
            only("sync", "aligned", "m8n8", "x1", "x2", "x4", "shared", "trans")
            f, where, values = ("load", a[1], a[0]) if name == "ldmatrix" else ("store", a[0], a[1])
            values = ", ".join(
                (target if f == "load" else source)(one, "b32") for one in _arguments(values.strip("{} "))
            )
            return [f"M.{f}_matrix({line}, {self._address(where, 'b32')}, {k}, [{values}], {'trans' in mods})"]
        raise MachineError("unknown instruction")

    def _pairs(self, instruction: Instruction, k: str) -> list[str]:
        """Two float32 numbers in a register of 64 bits (from sm_100 on)."""
        name, *mods = instruction.opcode.split(".")
        if set(mods) - {"rn", "f32x2"}:
            raise MachineError(f"unknown modifier in {instruction.opcode}")
        x = [f"np.ascontiguousarray(np.broadcast_to({self._source(one, 'b64')}, (M.size,))).view(F32)"
             for one in instruction.args[1:]]  # fmt: skip
        if name == "fma":
            value = f"(np.multiply({x[0]}, {x[1]}, dtype=F64) + {x[2]}).astype(F32)"
        else:
            value = f"np.{ {'add': 'add', 'sub': 'subtract', 'mul': 'multiply'}[name] }({x[0]}, {x[1]})"
        return [f"np.copyto({self._target(instruction.args[0], 'b64')}, {value}.view(U64), where={k})"]

    def _address(self, text: str, kind: str) -> str:
        base, _, offset = text.strip("[] ").partition("+")
        base, offset = base.strip(), int(offset or "0", 0)
        if base == "global_smem":
            return f"M.zero + U32({offset})"
        base = self._source(base, kind)
        return f"{base} + {self._constant(DTYPES[kind](offset))}" if offset else base

    def _memory(self, instruction: Instruction, k: str) -> list[str]:
        name, *mods = instruction.opcode.split(".")
        kind, a = mods[-1], instruction.args
        space = mods[0]
        if set(mods[1:-1]) - {"v2", "v4", "v8"}:
            raise MachineError(f"unknown modifier in {instruction.opcode}")
        where, values = (a[1], a[0]) if name == "ld" else (a[0], a[1])
        values = _arguments(values.strip("{} "))
        dtype = DTYPES[kind].__name__
        if space == "param":
            return [f"np.copyto({self._target(values[0], kind)}, M.param({where!r}, np.{dtype}), where={k})"]
        address = self._address(where, "b64" if space == "global" else "b32")
        if name == "ld":
            outs = ", ".join(self._target(one, kind) for one in values)
            return [f"M.load_{space}({instruction.line}, {address}, {k}, np.{dtype}, [{outs}])"]
        sources = ", ".join(self._source(one, kind) for one in values)
        return [f"M.store_{space}({instruction.line}, {address}, {k}, np.{dtype}, [{sources}])"]

    def _move(self, instruction: Instruction, k: str) -> list[str]:
        a, kind = instruction.args, instruction.opcode.split(".")[-1]
        if len(instruction.opcode.split(".")) != 2:
            raise MachineError("unknown move")
        bits = CLASS_BITS[kind]
        if a[0].startswith("{"):
            parts = _arguments(a[0].strip("{} "))
            width, out = bits // len(parts), []
            for i, part in enumerate(parts):
                if part != "_":
                    value = f"({self._source(a[1], kind)} >> {self._constant(DTYPES[kind](i * width))})"
                    to = self._target(part, f"b{width}")
                    out.append(f"np.copyto({to}, {value}, where={k}, casting='unsafe')")
            return out
        if a[1].startswith("{"):
            parts = _arguments(a[1].strip("{} "))
            width, wide = bits // len(parts), DTYPES[kind].__name__
            value = " | ".join(
                f"np.left_shift({self._source(part, f'b{width}')}, {i * width}, dtype=np.{wide})"
                for i, part in enumerate(parts)
            )
        else:
            value = self._source(a[1], kind)
        return [f"np.copyto({self._target(a[0], kind)}, {value}, where={k}, casting='unsafe')"]

    def _convert(self, instruction: Instruction, k: str) -> list[str]:
        _, *mods, to, of = instruction.opcode.split(".")
        a = instruction.args
        floats = ("f16", "bf16", "f32", "f64")

        def put(value: str, kind: str) -> list[str]:
            return [f"np.copyto({self._target(a[0], kind)}, {value}, where={k}, casting='unsafe')"]

        if to in ("bf16x2", "f16x2") and of == "f32" and mods == ["rn"]:
            f = "to_bf16({})" if to == "bf16x2" else "({}).astype(F16).view(U16)"
            high, low = (f.format(f"np.asarray({self._source(one, of)})") for one in a[1:])
            return put(f"np.left_shift({high}, 16, dtype=U32) | {low}", "b32")
        value = self._source(a[1], of)
        if of == "bf16":
            value = f"from_bf16({value})"
        if of in floats and to in floats:
            if mods not in ([], ["rn"]):
                raise MachineError("unknown rounding")
            if to == "bf16":
                value = f"to_bf16({value})" if of == "f32" else value
                if of != "f32":
                    raise MachineError("to bf16 of another type")
            return put(value, to)
        if of in floats:
            raise MachineError("to an integer")
        if to in floats:
            if mods != ["rn"] or to not in ("f32", "f64"):
                raise MachineError("unknown conversion")
            return put(f"({value}).astype(np.{DTYPES[to].__name__})", to)
        if mods:
            raise MachineError("unknown conversion")
        return put(f"({value}).astype(np.{DTYPES[to].__name__})", to)


# Execution ------------------------------------------------------------------------------------------------------------


@dataclass
class Range:
    """Memory of the host that a launch may touch."""

    start: int
    stop: int
    name: str

    def __post_init__(self) -> None:
        # Typed views start at a multiple of 16, which may be a little before what may be touched.
        self.base = self.start & ~15
        size = -(-(self.stop - self.base) // 16) * 16
        self.bytes = np.frombuffer((ctypes.c_uint8 * size).from_address(self.base), np.uint8) if size else None

    def view(self, dtype: type) -> np.ndarray:
        return self.bytes.view(dtype)


@dataclass
class Report:
    """What one launch did, and what was wrong with it: lines of text, at most a few for each kind."""

    kernel: str
    grid: tuple[int, ...]
    faults: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)  # of warps' instructions, by class
    programs: int = 0

    def add(self, kind: str, text: str) -> None:
        lines = self.faults.setdefault(kind, [])
        if len(lines) < 4:
            lines.append(f"{self.kernel} {self.grid}: {text}")

    @property
    def instructions(self) -> int:
        """Of threads: 32 for each that a warp issues."""
        return 32 * sum(count for kind, count in self.counts.items() if kind != "warps")


class Machine:
    """Runs one launch."""

    def __init__(self, program: Program, params: list[bytes], ranges: list[Range], grid: tuple[int, int, int],
                 shared: int, seed: int = 0, jitter: int | None = None) -> None:  # fmt: skip
        self.program, self.grid, self.jitter = program, grid, jitter
        if len(params) != len(program.params):
            raise MachineError(f"{program.name}: {len(params)} arguments for {len(program.params)} parameters")
        self.values = {}
        for (name, size), value in zip(program.params, params, strict=True):
            if len(value) != size:
                raise MachineError(f"{name}: {len(value)} bytes for {size}")
            self.values[f"[{name}]"] = value
        self.ranges = sorted((r for r in ranges if r.stop > r.start), key=lambda r: r.start)
        self.starts = np.array([r.start for r in self.ranges], U64)
        self.stops = np.array([r.stop for r in self.ranges], U64)
        self.shared = -(-shared // 16) * 16
        self.shared_limit = shared
        self.random = np.random.default_rng(seed)
        self.report = Report(program.name, grid)
        self.warps = program.threads // 32
        self.epoch = 0
        self.global_log: list[tuple] = []
        # Which programs to run, as a function of the grid, where all of them would be too many.
        self.only = None
        self.lines = {i.line: i.text for block in program.blocks for i in block.instructions}

    def run(self) -> Report:
        x, y, z = self.grid
        total = x * y * z
        if not total:
            return self.report
        if not (0 < x < 2**31 and 0 < y < 65536 and 0 < z < 65536):
            self.report.add("grid", f"invalid grid {self.grid}")
            return self.report
        counts = self.program.registers
        bytes_a_lane = self.warps * (counts[1] + 2 * counts[16] + 4 * counts[32] + 8 * counts[64])
        most = max(1, min(LANES, REGISTER_BYTES // max(1, bytes_a_lane)) // 32)
        order = self.random.permutation(total if self.only is None else self.only(self.grid))
        with np.errstate(all="ignore"):
            for start in range(0, total, most):
                self._batch(order[start : start + most])
            for fault in races(self.global_log, self.program.threads, True):
                self._race("global", *fault)
        self.report.programs = total
        return self.report

    # Control flow

    def _batch(self, ctas: np.ndarray) -> None:
        x, y, _ = self.grid
        count, n = len(ctas), 32 * len(ctas)
        lane = np.tile(np.arange(32), count)
        self.lane, self.first_lane = lane.astype(U32), np.arange(n) // 32 * 32
        self.cta = np.repeat(np.arange(count), 32)
        self.zero = np.zeros(n, U32)
        each = np.repeat(ctas, 32)
        self.special = {
            "%ctaid.x": (each % x).astype(U32), "%ctaid.y": (each // x % y).astype(U32),
            "%ctaid.z": (each // (x * y)).astype(U32), "%nctaid.x": U32(self.grid[0]), "%nctaid.y": U32(self.grid[1]),
            "%nctaid.z": U32(self.grid[2]), "%ntid.x": U32(self.program.threads), "%laneid": lane.astype(U32),
        }  # fmt: skip
        self.memory = np.full(count * self.shared, 0xA5, np.uint8)
        self.written = np.zeros(count * self.shared, np.uint8)
        self.shared_log: list[tuple] = []
        self.base = self.cta * self.shared
        # Of each lane: how many barriers of its warp there have been.
        self.interval = np.zeros(n, S64)
        if getattr(self, "size", None) != n:
            self.size, self.files = n, [self._registers(n) for _ in range(self.warps)]
        slots = [np.zeros(n, np.int64) for _ in range(self.warps)]
        while True:
            # An interval: every warp to its next barrier or its end. -1: ended; -2 - b: waits, to go on at block b.
            for w in self.random.permutation(self.warps):
                self.threads = (each * self.program.threads + 32 * w + lane).astype(S64)
                self.special["%tid.x"] = (32 * w + lane).astype(U32)
                self._slot(slots[w], self.files[w])
            self.epoch += 1
            waiting = np.stack([(pc < -1).reshape(count, 32) for pc in slots])
            some, every = waiting.any((0, 2)), waiting.all((0, 2))
            if (some & ~every).any():
                self.report.add("barrier", "some threads of a program end while others wait at a barrier")
                break
            if not some.any():
                break
            for pc in slots:
                pc[pc < -1] = -2 - pc[pc < -1]
        for fault in races(self.shared_log, self.program.threads, False):
            self._race("shared", *fault)

    def _registers(self, n: int) -> tuple:
        """Views of fresh registers, filled with what is NaN and -1."""
        counts = self.program.registers
        views = [list(np.ones((counts[1], n), np.bool_))]
        for bits, dtypes in ((16, (U16, S16, F16)), (32, (U32, S32, F32)), (64, (U64, S64, F64))):
            memory = np.full((counts[bits], n), -1, BITS[bits][1])
            views += [list(memory.view(dtype)) for dtype in dtypes]
        return tuple(views)

    def _slot(self, pc: np.ndarray, registers: tuple) -> None:
        blocks, n, predicates = self.program.blocks, len(pc), registers[0]
        warps = n // 32
        while True:
            runnable = pc >= 0
            if not runnable.any():
                return
            for at in np.unique(pc[runnable]).tolist():
                active = pc == at
                if blocks[at].converges:
                    active &= np.repeat(active.reshape(-1, 32).all(1), 32)
                if active.any():
                    break
            else:
                at = int(pc[runnable].min())
                active = pc == at
                text = blocks[at].instructions[0].text
                self.report.add("convergence", f"a part of a warp waits for the rest for ever: {text}")
            mask = True if active.all() else active
            # As long as the active lanes stay together, and are all there are or go forwards past nobody.
            while True:
                block = blocks[at]
                block.function(self, registers, mask)
                issued = warps if mask is True else int(active.reshape(-1, 32).any(1).sum())
                for kind, count in block.counts.items():
                    self.report.counts[kind] += count * issued
                end = block.end
                if end[0] == "go":
                    following = at + 1 if end[1] is None else end[1]
                elif end[0] == "if":
                    taken = predicates[int(end[1].strip("<>").split(":")[1])]
                    taken = ~taken if end[2] else taken
                    if mask is not True:
                        taken = taken & active
                    hits, all_of = int(taken.sum()), n if mask is True else int(active.sum())
                    if 0 < hits < all_of:
                        pc[active] = at + 1
                        pc[taken] = end[3]
                        break
                    following = end[3] if hits else at + 1
                elif end[0] == "bar":
                    pc[active] = -2 - (at + 1)
                    break
                else:
                    pc[active] = -1
                    break
                if mask is not True:
                    pc[active] = following
                    break
                at = following

    # What instructions ask for

    def param(self, name: str, dtype: type) -> np.generic:
        value = self.values[name]
        return np.frombuffer(value[: np.dtype(dtype).itemsize], dtype)[0]

    def members(self, line: int, mask: object, members: object) -> None:
        if np.any(np.where(mask, members, U32(0xFFFFFFFF)) != U32(0xFFFFFFFF)):
            raise MachineError(f"{self.program.name}: members of {self.lines[line]}")

    def shuffle(self, x: np.ndarray, lane: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, (self.size,))[self.first_lane + (lane & U32(31))]

    def reduce(self, function: np.ufunc, x: np.ndarray) -> np.ndarray:
        return np.repeat(function.reduce(x.reshape(-1, 32), 1), 32)

    def _race(self, space: str, kind: str, address: int, lines: tuple, threads: tuple) -> None:
        where = f"byte {address % self.shared if self.shared and space == 'shared' else address:#x}"
        if space == "global":
            where = next((f"{r.name}+{address - r.start}" for r in self.ranges if r.start <= address < r.stop), where)
        which = " and ".join(f"line {line} ({self.lines[line]})" for line in lines)
        self.report.add(f"{kind} ({space})", f"{where}: {which}; threads {threads}")

    # Global memory

    def _locate(self, line: int, address: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The number of the range of each address, and which accesses are good."""
        if not self.ranges:
            self.report.add("out of bounds", f"line {line}: {self.lines[line]}: no memory at all")
            return np.zeros(address.size, S64), np.zeros(address.size, bool)
        at = np.searchsorted(self.starts, address, "right") - 1
        inside = (at >= 0) & (address + U64(size) <= self.stops[at])
        if not inside.all():
            first = int(address[~inside][0])
            near = self.ranges[max(0, int(at[~inside][0]))]
            self.report.add(
                "out of bounds",
                f"line {line}: {self.lines[line]}: {int((~inside).sum())} lanes, first {first:#x}, which is "
                f"{first - near.start} bytes from the start of {near.name} of {near.stop - near.start}",
            )
        aligned = address % U64(size) == 0
        if not aligned.all():
            self.report.add("misaligned", f"line {line}: {self.lines[line]}: {int(address[~aligned][0]):#x}")
        return at, inside & aligned

    def _lanes(self, address: np.ndarray, mask: object) -> tuple[np.ndarray, np.ndarray]:
        lanes = np.arange(self.size) if mask is True else np.flatnonzero(mask)
        return lanes, np.broadcast_to(address, (self.size,))[lanes]

    def load_global(self, line: int, address: np.ndarray, mask: object, dtype: type, outs: list) -> None:
        lanes, address = self._lanes(address, mask)
        if not lanes.size:
            return
        item = np.dtype(dtype).itemsize
        size = item * len(outs)
        at, good = self._locate(line, address, size)
        if not good.all():
            lanes, address, at = lanes[good], address[good], at[good]
        for number in np.unique(at):
            mine = slice(None) if at[0] == number and (at == number).all() else np.flatnonzero(at == number)
            memory = self.ranges[number]
            index = ((address[mine] - U64(memory.base)) // U64(item)).astype(S64)
            view = memory.view(dtype)
            for i, out in enumerate(outs):
                out[lanes[mine]] = view[index + i]
        self.global_log.append(
            (address, size, self.threads[lanes], self.interval[lanes], self.epoch, False, line, None)
        )

    def store_global(self, line: int, address: np.ndarray, mask: object, dtype: type, sources: list) -> None:
        lanes, address = self._lanes(address, mask)
        if not lanes.size:
            return
        item = np.dtype(dtype).itemsize
        size = item * len(sources)
        at, good = self._locate(line, address, size)
        if not good.all():
            lanes, address, at = lanes[good], address[good], at[good]
        data = np.stack([np.broadcast_to(s, (self.size,))[lanes] for s in sources], 1).astype(dtype)
        for number in np.unique(at):
            mine = np.flatnonzero(at == number)
            memory = self.ranges[number]
            index = ((address[mine] - U64(memory.base)) // U64(item)).astype(S64)
            view = memory.view(dtype)
            for i in range(len(sources)):
                view[index + i] = data[mine, i]
        self.global_log.append((address, size, self.threads[lanes], self.interval[lanes], self.epoch, True, line, data))

    # Shared memory

    def _shared(self, line: int, address: np.ndarray, mask: object, size: int) -> tuple[np.ndarray, np.ndarray]:
        lanes, address = self._lanes(address, mask)
        good = (address.astype(S64) + size <= self.shared_limit) & (address % U32(size) == 0)
        if not good.all():
            self.report.add(
                "out of bounds",
                f"line {line}: {self.lines[line]}: shared address {int(address[~good][0])} of {self.shared_limit}",
            )
            lanes, address = lanes[good], address[good]
        return lanes, self.base[lanes] + address.astype(S64)

    def load_shared(self, line: int, address: np.ndarray, mask: object, dtype: type, outs: list) -> None:
        item = np.dtype(dtype).itemsize
        lanes, at = self._shared(line, address, mask, item * len(outs))
        if not lanes.size:
            return
        index, whole = at // item, self.written.view(BITS[8 * item][0])
        for i, out in enumerate(outs):
            self._written(line, whole[index + i], item)
            out[lanes] = self.memory.view(dtype)[index + i]
        self.shared_log.append(
            (at, item * len(outs), self.threads[lanes], self.interval[lanes], self.epoch, False, line, None)
        )

    def _written(self, line: int, flags: np.ndarray, item: int) -> None:
        if (flags != flags.dtype.type(int("01" * item, 16))).any():
            self.report.add("uninitialised", f"line {line}: {self.lines[line]}: shared memory")

    def store_shared(self, line: int, address: np.ndarray, mask: object, dtype: type, sources: list) -> None:
        item = np.dtype(dtype).itemsize
        lanes, at = self._shared(line, address, mask, item * len(sources))
        if not lanes.size:
            return
        index = at // item
        data = np.stack([np.broadcast_to(s, (self.size,))[lanes] for s in sources], 1).astype(dtype)
        for i in range(len(sources)):
            self.memory.view(dtype)[index + i] = data[:, i]
            self.written.view(BITS[8 * item][0])[index + i] = int("01" * item, 16)
        self.shared_log.append(
            (at, item * len(sources), self.threads[lanes], self.interval[lanes], self.epoch, True, line, data)
        )

    def load_matrix(self, line: int, address: np.ndarray, mask: object, outs: list, transposed: bool) -> None:
        """ldmatrix: lane 8 i + r has the address of row r of matrix i, eight numbers of 16 bits; lane l gets numbers
        2 (l % 4) and the next of row l / 4."""
        lanes, at = self._shared(line, address, (self.lane < 8 * len(outs)) & mask, 16)
        if not lanes.size:
            return
        self._written(line, self.written.reshape(-1, 16)[at // 16].view(U32), 4)
        rows = np.zeros((self.size, 8), U16)
        rows[lanes] = self.memory.view(U16).reshape(-1, 8)[at // 16]
        for i, out in enumerate(outs):
            matrix = rows.reshape(-1, 32, 8)[:, 8 * i : 8 * i + 8]
            matrix = np.ascontiguousarray(matrix.transpose(0, 2, 1) if transposed else matrix)
            np.copyto(out, matrix.reshape(-1).view(U32), where=mask)
        self.shared_log.append((at, 16, self.threads[lanes], self.interval[lanes], self.epoch, False, line, None))

    def store_matrix(self, line: int, address: np.ndarray, mask: object, sources: list, transposed: bool) -> None:
        """stmatrix: the other way round."""
        lanes, at = self._shared(line, address, (self.lane < 8 * len(sources)) & mask, 16)
        if not lanes.size:
            return
        rows = np.zeros((self.size // 32, 32, 8), U16)
        for i, source in enumerate(sources):
            matrix = np.ascontiguousarray(np.broadcast_to(source, (self.size,))).view(U16).reshape(-1, 8, 8)
            rows[:, 8 * i : 8 * i + 8] = matrix.transpose(0, 2, 1) if transposed else matrix
        data = rows.reshape(-1, 8)[lanes]
        self.memory.view(U16).reshape(-1, 8)[at // 16] = data
        self.written.reshape(-1, 16)[at // 16] = 1
        self.shared_log.append((at, 16, self.threads[lanes], self.interval[lanes], self.epoch, True, line, data))


# Races ----------------------------------------------------------------------------------------------------------------


def races(log: list[tuple], threads: int, between_programs: bool):
    """Yields (kind, address, lines, threads) of bytes that two warps touch between two barriers, or two programs in a
    launch, where one of them writes; and of two threads of a warp in two instructions. Where all that is written is the
    same, and nobody else reads, it is a "same write" (or one "but for rounding").

    Args:
        log: of (addresses, bytes, threads, barriers of their warps, barriers, whether it writes, line, what).
        threads: of a program.
        between_programs: whether programs share the memory.
    """
    if not any(entry[5] for entry in log):
        return
    unit = min(entry[1] if entry[7] is None else entry[7].itemsize for entry in log)
    writes = np.unique(np.concatenate([_units(entry, unit) for entry in log if entry[5]]))
    parts = []
    for number, entry in enumerate(log):
        _, size, who, interval, epoch, is_write, _, data = entry
        at = _units(entry, unit)
        per = size // unit
        place = np.searchsorted(writes, at)
        keep = np.flatnonzero(writes[np.minimum(place, writes.size - 1)] == at)
        if keep.size:
            what = np.zeros(at.size, U64)
            if is_write:
                # Of each unit, the whole number that is stored.
                item = data.itemsize
                what = np.repeat(
                    np.ascontiguousarray(data).view(BITS[8 * item][0]).reshape(-1).astype(U64), item // unit
                )
            each = (np.full(keep.size, one) for one in (epoch, is_write, number))
            parts.append((at[keep], np.repeat(who, per)[keep], np.repeat(interval, per)[keep], *each, what[keep]))
    at, who, interval, epoch, is_write, number, what = (np.concatenate(column) for column in zip(*parts, strict=True))
    # Only what is touched more than once.
    place = np.searchsorted(writes, at)
    keep = np.bincount(place, minlength=writes.size)[place] > 1
    at, who, interval, epoch, is_write, number, what = (
        c[keep] for c in (at, who, interval, epoch, is_write, number, what)
    )
    if not at.size:
        return
    actors = {"race between programs": who // threads, "race": who // 32, "race within a warp": who}
    for kind_of, actor in actors.items():
        if kind_of == "race between programs":
            if not between_programs:
                continue
            keys: tuple = (at,)
        else:
            # One barrier of a warp parts the accesses of that warp alone.
            keys = (epoch, who // threads, at) if kind_of == "race" else (interval, epoch, who // 32, at)
        order = np.lexsort(keys)
        edges = np.flatnonzero(np.any([np.diff(key[order]) != 0 for key in keys], 0)) + 1
        starts = np.concatenate([[0], edges])

        def spread(x: np.ndarray, order: np.ndarray = order, starts: np.ndarray = starts) -> np.ndarray:
            return np.maximum.reduceat(x[order], starts) != np.minimum.reduceat(x[order], starts)

        wrote = np.maximum.reduceat(is_write[order], starts)
        read = np.maximum.reduceat(~is_write[order], starts)
        same = ~read & ~spread(what)
        many = spread(actor)
        if kind_of == "race within a warp":
            # In one instruction, only what is written matters.
            many &= spread(number) | ~same
        for group in np.flatnonzero(many & wrote)[:1000]:
            rows = order[starts[group] : starts[group + 1] if group + 1 < starts.size else None]
            kind = kind_of
            if same[group]:
                kind = "same write"
            elif not read[group] and len(items := {log[n][7].itemsize for n in number[rows]}) == 1:
                kind = "same write but for rounding" if _close(what[rows], items.pop()) else kind
            lines = tuple(sorted({log[number[row]][6] for row in rows}))
            yield kind, int(at[rows[0]]) * unit, lines[:4], tuple(int(t) for t in who[rows][:4])


def _close(bits: np.ndarray, item: int) -> bool:
    """Whether floats are a few units of the last place apart, of 1 at least: what the lanes of a butterfly of sums may
    be, where the compiler fuses a product into the first sum of each, and a small difference of such a sum."""
    if item < 4:
        return False
    x = bits.astype(BITS[8 * item][0]).view(F32 if item == 4 else F64).astype(F64)
    # The bits of a NaN are not defined, but for -1, which is an integer.
    if np.isnan(x).all() and not (bits == 2 ** (8 * item) - 1).any():
        return True
    few, size = 4e-6 if item == 4 else 1e-14, np.abs(x)
    # Small integers look like subnormal numbers.
    floats = np.isfinite(x).all() and ((x == 0) | (size >= 2.0**-126)).all()
    return bool(floats and np.ptp(x) <= few * max(1, size.max()))


def _units(entry: tuple, unit: int) -> np.ndarray:
    address, size = entry[0].astype(S64) // unit, entry[1]
    return (address[:, None] + np.arange(size // unit)).reshape(-1)
