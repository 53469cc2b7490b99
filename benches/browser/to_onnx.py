"""Writes a Llama model of a GGUF file as ONNX, as transformers.js loads it: to compare engines with the same weights.

    pip install gguf==0.19.0 onnx==1.23.2 # the group `browser` of pyproject.toml
    python benches/browser/to_onnx.py MODEL.gguf benches/browser/onnx/smollm2

The weights are those of the file, exactly, as f32: transformers.js reads no GGUF, and what ONNX Runtime has for 4 bits holds
other values than Q4_1. Attention is ONNX Runtime's own operator. Only the last token of a chunk gets logits, as in other
engines.
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes and weights of a graph while it is written."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, name, values):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind, inputs, outputs=1, domain="", **attributes):
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names if outputs > 1 else names[0]

    def linear(self, x, name, matrix):
        """`x` times the transposed `matrix` [rows, columns]."""
        return self.node("MatMul", [x, self.weight(name, matrix.T)])

    def norm(self, x, name, values, epsilon):
        scale = self.weight(name, values)
        return self.node("SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=epsilon, stash_type=1)


def field(reader, name):
    return reader.get_field(f"llama.{name}").contents()


def build(reader, config):
    """The model of a decoder with a cache, under the names that transformers.js expects."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    epsilon, layers = config["rms_norm_eps"], config["num_hidden_layers"]

    def load(name):
        tensor = tensors[f"{name}.weight"]
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)

    def rotated(name, count):
        """The rows in the order of Hugging Face checkpoints; llama.cpp's converter has put partners side by side."""
        matrix = load(name)
        return matrix.reshape(count, size // 2, 2, -1).swapaxes(1, 2).reshape(matrix.shape)

    graph = Graph()
    angles = np.arange(config["max_position_embeddings"])[:, None] / config["rope_theta"] ** (np.arange(0, size, 2) / size)
    cos, sin = (graph.weight(name, f(angles).astype(np.float32)) for name, f in (("cos", np.cos), ("sin", np.sin)))
    one = graph.weight("one", np.array([1], np.int64))
    lengths = graph.node("Sub", [graph.node("ReduceSum", ["attention_mask", one], keepdims=0), one])
    lengths = graph.node("Cast", [lengths], to=TensorProto.INT32)
    total = graph.node("Gather", [graph.node("Shape", ["attention_mask"]), graph.weight("axis", np.array(1, np.int64))])
    total = graph.node("Cast", [total], to=TensorProto.INT32)
    embedding = load("token_embd")
    x = graph.node("Gather", [graph.weight("embedding", embedding), "input_ids"])
    caches, presents = [], []
    for i in range(layers):
        at = f"blk.{i}"
        normed = graph.norm(x, f"{at}.attn_norm", load(f"{at}.attn_norm"), epsilon)
        q = graph.linear(normed, f"{at}.q", rotated(f"{at}.attn_q", heads))
        k = graph.linear(normed, f"{at}.k", rotated(f"{at}.attn_k", kv_heads))
        v = graph.linear(normed, f"{at}.v", load(f"{at}.attn_v"))
        past = [f"past_key_values.{i}.{what}" for what in ("key", "value")]
        node = helper.make_node(
            "GroupQueryAttention",
            [q, k, v, *past, lengths, total, cos, sin],
            [f"{at}.attended", f"present.{i}.key", f"present.{i}.value"],
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=kv_heads,
            do_rotary=1,
            scale=size**-0.5,
        )
        graph.nodes.append(node)
        cache = ["batch_size", kv_heads, "past_sequence_length", size]
        caches += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in past]
        cache = ["batch_size", kv_heads, "total_sequence_length", size]
        presents += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in node.output[1:]]
        x = graph.node("Add", [x, graph.linear(f"{at}.attended", f"{at}.o", load(f"{at}.attn_output"))])
        normed = graph.norm(x, f"{at}.ffn_norm", load(f"{at}.ffn_norm"), epsilon)
        gate = graph.linear(normed, f"{at}.gate", load(f"{at}.ffn_gate"))
        gate = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        gated = graph.node("Mul", [gate, graph.linear(normed, f"{at}.up", load(f"{at}.ffn_up"))])
        x = graph.node("Add", [x, graph.linear(gated, f"{at}.down", load(f"{at}.ffn_down"))])
    ends = [graph.weight(name, np.array([value], np.int64)) for name, value in (("from", -1), ("to", 2**31 - 1))]
    x = graph.norm(graph.node("Slice", [x, *ends, one]), "output_norm", load("output_norm"), epsilon)
    head = load("output") if "output.weight" in tensors else embedding
    logits = graph.linear(x, "head", head)
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    ids = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    shape = ["batch_size", 1, config["vocab_size"]]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape), *presents]
    made = helper.make_graph(graph.nodes, "decoder", ids + caches, outputs, graph.weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.model)
    if reader.get_field("general.architecture").contents() != "llama":
        raise SystemExit(f"{args.model}: not of the architecture `llama`")
    width, heads = field(reader, "embedding_length"), field(reader, "attention.head_count")
    end = int(reader.get_field("tokenizer.ggml.eos_token_id").contents())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(reader.get_field("tokenizer.ggml.tokens").contents()),
        "hidden_size": width,
        "intermediate_size": field(reader, "feed_forward_length"),
        "num_hidden_layers": field(reader, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field(reader, "attention.head_count_kv"),
        "head_dim": width // heads,
        "rms_norm_eps": field(reader, "attention.layer_norm_rms_epsilon"),
        "rope_theta": field(reader, "rope.freq_base"),
        "max_position_embeddings": field(reader, "context_length"),
        "tie_word_embeddings": True,
        "eos_token_id": end,
    }
    (args.folder / "onnx").mkdir(parents=True, exist_ok=True)
    (args.folder / "config.json").write_text(json.dumps(config, indent=1))
    (args.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    file = args.folder / "onnx" / "model.onnx"
    onnx.save(build(reader, config), file)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
