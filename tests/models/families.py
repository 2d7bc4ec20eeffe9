"""The weights of models of the transformers library by our names."""

import jax
import jax.numpy as jnp


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def norm_of(module):
    """A norm's gain, and its bias if it has one."""
    found = {"scale": array(module.weight)}
    bias = getattr(module, "bias", None)
    return found if bias is None else found | {"bias": array(bias)}


def linear_of(name, module):
    """{name: matrix (in, out)}, and the bias if there is one."""
    found = {name: array(module.weight).T}
    return found if module.bias is None else found | {f"{name}_bias": array(module.bias)}


def heads_of(name, module, head_width):
    """{name: projection (M, H, D)}, and the bias (H, D) if there is one."""
    weight = array(module.weight)
    found = {name: weight.T.reshape(weight.shape[1], -1, head_width)}
    bias = module.bias
    return found if bias is None else found | {f"{name}_bias": array(bias).reshape(-1, head_width)}


def merged_of(module, head_width):
    """The output projection (H, D, M), and its bias if there is one."""
    found = linear_of("out", module)
    return found | {"out": found["out"].reshape(-1, head_width, found["out"].shape[1])}


def stacked(layers, slots=1):
    """Layers in a list as the scan over repeats of a pattern of `slots` layers stacks them."""
    return {
        str(slot): jax.tree.map(lambda *a: jnp.stack(a), *layers[slot::slots])
        for slot in range(slots)
    }


def of_gpt2(model, head_width):
    """A GPT-2's layers, and its other parameters."""
    body, layers = model.transformer, []
    for block in body.h:
        # Conv1D has its matrix as (in, out).
        split = array(block.attn.c_attn.weight)
        split = split.reshape(len(split), 3, -1, head_width)
        biases = array(block.attn.c_attn.bias).reshape(3, -1, head_width)
        mixer = {n: split[:, i] for i, n in enumerate(("query", "key", "value"))}
        mixer |= {f"{n}_bias": biases[i] for i, n in enumerate(("query", "key", "value"))}
        out = array(block.attn.c_proj.weight)
        mixer["out"] = out.reshape(-1, head_width, out.shape[1])
        mixer["out_bias"] = array(block.attn.c_proj.bias)
        feed = {
            "in": array(block.mlp.c_fc.weight),
            "in_bias": array(block.mlp.c_fc.bias),
            "out": array(block.mlp.c_proj.weight),
            "out_bias": array(block.mlp.c_proj.bias),
        }
        norms = {"norm1": norm_of(block.ln_1), "norm2": norm_of(block.ln_2)}
        layers.append({"mixer": mixer, "feedforward": feed, **norms})
    return layers, {
        "embedding": array(body.wte.weight),
        "position": array(body.wpe.weight),
        "norm": norm_of(body.ln_f),
    }


def of_llama(model, head_width):
    """The layers of a Llama or of one of its kin, and its other parameters."""
    layers = []
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        mixer = merged_of(attention.o_proj, head_width)
        for name in ("query", "key", "value"):
            mixer |= heads_of(name, getattr(attention, f"{name[0]}_proj"), head_width)
        if hasattr(attention, "q_norm"):
            mixer["query_scale"] = array(attention.q_norm.weight)
            mixer["key_scale"] = array(attention.k_norm.weight)
        feed = {"in": mlp.gate_proj, "gate": mlp.up_proj, "out": mlp.down_proj}
        norms = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
        if hasattr(block, "pre_feedforward_layernorm"):
            norms |= {
                "norm1_out": "post_attention_layernorm",
                "norm2": "pre_feedforward_layernorm",
                "norm2_out": "post_feedforward_layernorm",
            }
        layers.append(
            {
                "mixer": mixer,
                "feedforward": {n: array(one.weight).T for n, one in feed.items()},
                **{n: norm_of(getattr(block, theirs)) for n, theirs in norms.items()},
            }
        )
    rest = {"embedding": array(model.model.embed_tokens.weight), "norm": norm_of(model.model.norm)}
    if not model.config.tie_word_embeddings:
        rest["head"] = array(model.lm_head.weight).T
    return layers, rest


def of_fused_blocks(blocks, attention, head_width):
    """The layers of a GPT-NeoX or a BLOOM, whose attention has this name."""
    layers = []
    for block in blocks:
        module = getattr(block, attention)
        layers.append(
            {
                "mixer": of_fused(module.query_key_value, head_width)
                | merged_of(module.dense, head_width),
                "feedforward": linear_of("in", block.mlp.dense_h_to_4h)
                | linear_of("out", block.mlp.dense_4h_to_h),
                "norm1": norm_of(block.input_layernorm),
                "norm2": norm_of(block.post_attention_layernorm),
            }
        )
    return layers


def of_neox(model, head_width):
    """The layers of a GPT-NeoX, and its other parameters."""
    body = model.gpt_neox
    return of_fused_blocks(body.layers, "attention", head_width), {
        "embedding": array(body.embed_in.weight),
        "head": array(model.lm_head.weight).T,
        "norm": norm_of(body.final_layer_norm),
    }


def of_bloom(model, head_width):
    """The layers of a BLOOM, and its other parameters."""
    body = model.transformer
    return of_fused_blocks(body.h, "self_attention", head_width), {
        "embedding": array(body.word_embeddings.weight),
        "embedding_norm": norm_of(body.word_embeddings_layernorm),
        "norm": norm_of(body.ln_f),
    }


def of_mpt(model, head_width):
    """The layers of an MPT, and its other parameters."""
    body, layers = model.transformer, []
    for block in body.blocks:
        fused = array(block.attn.Wqkv.weight).T
        fused = fused.reshape(len(fused), 3, -1, head_width)
        mixer = {n: fused[:, i] for i, n in enumerate(("query", "key", "value"))}
        layers.append(
            {
                "mixer": mixer | merged_of(block.attn.out_proj, head_width),
                "feedforward": linear_of("in", block.ffn.up_proj)
                | linear_of("out", block.ffn.down_proj),
                "norm1": norm_of(block.norm_1),
                "norm2": norm_of(block.norm_2),
            }
        )
    return layers, {"embedding": array(body.wte.weight), "norm": norm_of(body.norm_f)}


def of_fused(module, head_width):
    """Query, key and value of a projection to heads that have these three side by side."""
    weight = array(module.weight).T
    split = weight.reshape(len(weight), -1, 3, head_width)
    bias = array(module.bias).reshape(-1, 3, head_width)
    names = ("query", "key", "value")
    return {n: split[:, :, i] for i, n in enumerate(names)} | {
        f"{n}_bias": bias[:, i] for i, n in enumerate(names)
    }


def of_t5(model, head_width):
    """A T5. The table of the first layer's relative biases is that of every layer."""

    def of_attention(module):
        mixer = {}
        for name in ("query", "key", "value"):
            mixer |= heads_of(name, getattr(module, name[0]), head_width)
        return mixer | merged_of(module.o, head_width)

    def of_stack(stack):
        layers, crosses = [], []
        table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        for block in stack.block:
            attention, *cross, feed = block.layer
            dense = feed.DenseReluDense
            gated = {"in": "wi_0", "gate": "wi_1"} if hasattr(dense, "wi_0") else {"in": "wi"}
            feeding = {n: array(getattr(dense, it).weight).T for n, it in gated.items()}
            layers.append(
                {
                    "mixer": of_attention(attention.SelfAttention)
                    | {"biases_0_table": array(table)},
                    "norm1": norm_of(attention.layer_norm),
                    "feedforward": feeding | {"out": array(dense.wo.weight).T},
                    "norm2": norm_of(feed.layer_norm),
                }
            )
            if cross:
                layers[-1]["norm_cross"] = norm_of(cross[0].layer_norm)
                crosses.append(of_attention(cross[0].EncDecAttention))
        return {"layers": stacked(layers), "norm": norm_of(stack.final_layer_norm)}, crosses

    encoder, _ = of_stack(model.encoder)
    decoder, crosses = of_stack(model.decoder)
    found = {"encoder": encoder, "decoder": decoder, "cross": {"layers": stacked(crosses)["0"]}}
    found["embedding"] = array(model.shared.weight)
    if model.lm_head.weight is not model.shared.weight:
        found |= {"source_embedding": found["embedding"], "head": array(model.lm_head.weight).T}
    return found


def of_bart(model, head_width):
    """A BART, or a Marian, whose sines are a table of positions here."""

    def of_attention(module):
        mixer = {}
        for name in ("query", "key", "value"):
            mixer |= heads_of(name, getattr(module, f"{name[0]}_proj"), head_width)
        return mixer | merged_of(module.out_proj, head_width)

    def of_stack(stack):
        layers, crosses = [], []
        for block in stack.layers:
            layers.append(
                {
                    "mixer": of_attention(block.self_attn),
                    "norm1": norm_of(block.self_attn_layer_norm),
                    "feedforward": linear_of("in", block.fc1) | linear_of("out", block.fc2),
                    "norm2": norm_of(block.final_layer_norm),
                }
            )
            if hasattr(block, "encoder_attn"):
                layers[-1]["norm_cross"] = norm_of(block.encoder_attn_layer_norm)
                crosses.append(of_attention(block.encoder_attn))
        return {"layers": stacked(layers)}, crosses

    def of_positions(stack):
        table = stack.embed_positions
        return array(table.weight)[getattr(table, "offset", 0) :]

    body = model.model
    encoder, _ = of_stack(body.encoder)
    decoder, crosses = of_stack(body.decoder)
    found = {
        "encoder": encoder,
        "decoder": decoder,
        "cross": {"layers": stacked(crosses)["0"]},
        "embedding": array(body.decoder.embed_tokens.weight),
        "head_bias": array(model.final_logits_bias)[0],
        "position": of_positions(body.decoder),
        "source_position": of_positions(body.encoder),
    }
    if hasattr(body.decoder, "layernorm_embedding"):
        found["embedding_norm"] = norm_of(body.decoder.layernorm_embedding)
        found["source_embedding_norm"] = norm_of(body.encoder.layernorm_embedding)
    return found


def of_qwen3_next(model, head_width):
    """The layers of a Qwen3-Next without experts, and its other parameters."""
    layers = []
    for block in model.model.layers:
        if hasattr(block, "linear_attn"):
            mixer = of_gated_delta(block.linear_attn)
        else:
            attention = block.self_attn
            mixer = merged_of(attention.o_proj, head_width)
            for name in ("key", "value"):
                mixer |= heads_of(name, getattr(attention, f"{name[0]}_proj"), head_width)
            # Each head's query, and then its gate.
            both = heads_of("both", attention.q_proj, 2 * head_width)["both"]
            mixer["query"], mixer["gate"] = jnp.split(both, 2, axis=-1)
            mixer["query_scale"] = array(attention.q_norm.weight)
            mixer["key_scale"] = array(attention.k_norm.weight)
        feed = {"in": "gate_proj", "gate": "up_proj", "out": "down_proj"}
        layers.append(
            {
                "mixer": mixer,
                "feedforward": {n: array(getattr(block.mlp, t).weight).T for n, t in feed.items()},
                "norm1": norm_of(block.input_layernorm),
                "norm2": norm_of(block.post_attention_layernorm),
            }
        )
    return layers, {
        "embedding": array(model.model.embed_tokens.weight),
        "head": array(model.lm_head.weight).T,
        "norm": norm_of(model.model.norm),
    }


def of_gated_delta(module):
    """The mixer of a linear layer of Qwen3-Next, whose parts lie side by side in each key head."""
    keys, heads = module.num_k_heads, module.num_v_heads
    width, values = module.head_k_dim, module.head_v_dim
    each = heads // keys
    fused = array(module.in_proj_qkvz.weight).T
    fused = fused.reshape(len(fused), keys, -1)
    ends = [width, 2 * width, 2 * width + each * values]
    query, key, value, gate = jnp.split(fused, ends, axis=2)
    rates = array(module.in_proj_ba.weight).T.reshape(len(fused), keys, 2, each)
    # Theirs has the oldest input first.
    taps = array(module.conv1d.weight)[:, 0, ::-1].T
    taps = jnp.split(taps, [module.key_dim, 2 * module.key_dim], axis=1)
    return {
        "query": query,
        "key": key,
        "value": value.reshape(len(fused), heads, values),
        "gate": gate.reshape(len(fused), heads, values),
        **dict(zip(("query_taps", "key_taps", "value_taps"), taps, strict=True)),
        "beta": rates[:, :, 0].reshape(len(fused), heads),
        "step": rates[:, :, 1].reshape(len(fused), heads),
        "step_bias": array(module.dt_bias),
        "log_rate": array(module.A_log),
        "norm_scale": array(module.norm.weight),
        **merged_of(module.out_proj, values),
    }


def of_mamba2(model, head_width):
    """The layers of a Mamba-2, and its other parameters."""
    layers = []
    for block in model.backbone.layers:
        one = block.mixer
        inner, groups, width = one.intermediate_size, one.n_groups, one.ssm_state_size
        ends = [inner, 2 * inner, 2 * inner + groups * width, 2 * inner + 2 * groups * width]
        fused = array(one.in_proj.weight).T
        gate, value, key, query, step = jnp.split(fused, ends, axis=1)
        heads = (len(fused), -1, head_width)
        shared = (len(fused), groups, width)
        ends = [inner, inner + groups * width]
        # Theirs has the oldest input first.
        taps = jnp.split(array(one.conv1d.weight)[:, 0, ::-1].T, ends, axis=1)
        biases = jnp.split(array(one.conv1d.bias), ends)
        names = ("value", "key", "query")
        mixer = {
            "gate": gate.reshape(heads),
            "value": value.reshape(heads),
            "key": key.reshape(shared),
            "query": query.reshape(shared),
            "step": step,
            **{f"{n}_taps": a for n, a in zip(names, taps, strict=True)},
            **{f"{n}_taps_bias": a for n, a in zip(names, biases, strict=True)},
            "step_bias": array(one.dt_bias),
            "log_rate": array(one.A_log),
            "skip": array(one.D),
            "norm_scale": array(one.norm.weight).reshape(-1, head_width),
            **merged_of(one.out_proj, head_width),
        }
        layers.append({"mixer": mixer, "norm1": norm_of(block.norm)})
    rest = {
        "embedding": array(model.backbone.embeddings.weight),
        "norm": norm_of(model.backbone.norm_f),
    }
    return layers, rest | {"head": array(model.lm_head.weight).T}


def of_bert(model, head_width):
    """A BERT with a classifier of its pooled first state."""
    body, layers = model.bert, []
    for block in body.encoder.layer:
        attention = block.attention
        mixer = merged_of(attention.output.dense, head_width)
        for name in ("query", "key", "value"):
            mixer |= heads_of(name, getattr(attention.self, name), head_width)
        layers.append(
            {
                "mixer": mixer,
                "norm1": norm_of(attention.output.LayerNorm),
                "feedforward": linear_of("in", block.intermediate.dense)
                | linear_of("out", block.output.dense),
                "norm2": norm_of(block.output.LayerNorm),
            }
        )
    embeddings = body.embeddings
    return {
        "embed": {"embedding": array(embeddings.word_embeddings.weight)},
        "position": array(embeddings.position_embeddings.weight),
        "token_type": array(embeddings.token_type_embeddings.weight),
        "embedding_norm": norm_of(embeddings.LayerNorm),
        "stack": {"layers": stacked(layers)},
        "pool": linear_of("pooler", body.pooler.dense),
        **linear_of("head", model.classifier),
    }
