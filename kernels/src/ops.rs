//! The op list: all that a decoder may ask of a device.
//!
//! A decoder calls composites only (`embed` … `advance`). A composite has a default body made of
//! primitives; a device may replace the body by a fused one. An op is *recorded* once when a model
//! is loaded ([`Ops`] is a recorder, like a CUDA stream under capture); a step then replays the
//! program over a [`crate::batch::Batch`]. So arguments are cheap handles, shapes are checked once,
//! and nothing is decided per step but the numbers in the batch.
//!
//! Rounding points are part of each contract, so that fused, unfused and the float64 reference
//! agree: activations are f32 between ops; a linear with bf16 weights rounds its input rows to
//! bf16 (nearest even) once and accumulates in f32; with f16 or f32 weights it keeps f32 rows, of
//! which matrix units keep 22 bits with f16 (two halves, each cut off at 65504) and nothing less;
//! K and V are rounded to the cache's format ([`crate::kv_format`]) when stored and attention reads
//! only the cache.
//! With q8_0 and q4_0 weights a linear quantizes its input rows once, 32 elements along K to a scale:
//! `scale = max|x| / 127`, `q = round(x / scale)` (f32, nearest even, within ±127); a row that is not
//! finite gives NaN. The integer sum of a block is exact; `sum · (weight's scale · row's scale)` is
//! added in f32. With fp8 weights rows stay f32 (on matrix units 22 bits, as with f16), and a sum is
//! multiplied by its row's scale once.
//! A device that lets the number of rows choose may meet many rows with a quantized weight as with one
//! of bf16: rows are rounded to bf16, and so is each value of q8_0 and q4_0 (code · scale).
//!
//! Letters: T rows of a step, R logits rows, H hidden, Nq/Nkv query/KV heads, D head size, I
//! intermediate, V vocabulary, E experts, A experts chosen. Rows never interact except through the
//! cache, and every output element has one order of accumulation that depends on the weight's shape
//! alone; a device may offer a mode in which the number of rows chooses it, too.

/// A recorder of ops on one device. Handles are cheap to clone.
pub trait Ops {
    /// f32 activations, `[rows_max, cols]`, rows as many as the step has.
    type Tensor: Clone;
    /// f32 parameters of one dimension (norm weights, biases, rope tables).
    type Vector: Clone;
    /// A packed matrix `[N, K]`.
    type Weight: Clone;
    /// Packed matrices of all experts `[E, N, K]`.
    type Experts: Clone;
    /// The KV cache of one group of layers.
    type Kv: Clone;

    /// `x[t] = table[ids[t]] * scale`.
    fn embed(&mut self, op: Embed<Self>);

    /// Norm, QKV projection and bias, QK norm, rope; writes K and V to the cache, leaves q in
    /// `qkv`'s first Nq × D columns.
    fn attn_input(&mut self, op: AttnInput<Self>) {
        self.norm(NormRows { x: op.x, norm: op.norm, out: op.normed.clone() });
        self.linear(Linear {
            x: op.normed,
            weight: op.weight,
            bias: op.bias,
            out: op.qkv.clone(),
            epilogue: Epilogue::Store,
        });
        self.qk_rope_store(op.store);
    }

    /// Paged attention of q against the cache: one op for decode, prefill and mixed batches.
    fn attention(&mut self, op: Attention<Self>);

    /// `x += linear(attended)`, with an optional norm of the projection first (sandwich norms).
    fn attn_output(&mut self, op: AttnOutput<Self>) {
        self.project_back(op.attended, op.weight, op.bias, op.post_norm, op.x);
    }

    /// `x += down(act(gate(norm(x))) * up(norm(x)))`.
    fn mlp(&mut self, op: Mlp<Self>) {
        self.norm(NormRows { x: op.x.clone(), norm: op.norm, out: op.normed.clone() });
        self.linear(Linear {
            x: op.normed,
            weight: op.gate_up,
            bias: None,
            out: op.inner.clone(),
            epilogue: Epilogue::Glu(op.activation),
        });
        self.project_back(op.inner, op.down, None, op.post_norm, op.x);
    }

    /// Routes each row to A of E experts and adds their weighted outputs in ascending order of
    /// expert: `x += Σ w_e · expert_e(norm(x))`.
    fn moe(&mut self, op: Moe<Self>);

    /// Final norm of the rows that need logits, then logits `[R, V]` f32.
    fn head(&mut self, op: Head<Self>) {
        self.gather_rows(GatherRows { x: op.x, out: op.gathered.clone() });
        self.norm(NormRows { x: op.gathered.clone(), norm: op.norm, out: op.gathered.clone() });
        self.linear(Linear {
            x: op.gathered,
            weight: op.weight,
            bias: op.bias,
            out: op.logits,
            epilogue: Epilogue::Scale { scale: op.scale, soft_cap: op.soft_cap },
        });
    }

    /// Samples one token a logits row by the parameters of the row's slot, and log-probabilities.
    fn sample(&mut self, op: Sample<Self>);

    /// Stores each slot's sampled token, so that the next step may take it by
    /// [`crate::batch::PENDING_TOKEN`] before the host has read it.
    fn advance(&mut self);

    /// `out[t] = norm(x[t])`; `out` may be `x`.
    fn norm(&mut self, op: NormRows<Self>);

    /// `out = epilogue(x · weightᵀ + bias)`.
    fn linear(&mut self, op: Linear<Self>);

    /// QK norm and rope of q (in place) and k, then K and V to the cache.
    fn qk_rope_store(&mut self, op: QkRopeStore<Self>);

    /// `out[r] = x[logits[r].row]`.
    fn gather_rows(&mut self, op: GatherRows<Self>);

    /// `x += norm(linear(inner))`, the norm optional (needs `normed` scratch inside it).
    fn project_back(
        &mut self,
        inner: Self::Tensor,
        weight: Self::Weight,
        bias: Option<Self::Vector>,
        post_norm: Option<PostNorm<Self>>,
        x: Self::Tensor,
    ) {
        let Some(post) = post_norm else {
            self.linear(Linear { x: inner, weight, bias, out: x, epilogue: Epilogue::Add });
            return;
        };
        self.linear(Linear {
            x: inner,
            weight,
            bias,
            out: post.projected.clone(),
            epilogue: Epilogue::Store,
        });
        self.add_normed(post.projected, post.norm, x);
    }

    /// `x[t] += norm(projected[t])`.
    fn add_normed(&mut self, projected: Self::Tensor, norm: Norm<Self>, x: Self::Tensor);
}

/// Arguments of [`Ops::embed`].
pub struct Embed<O: Ops + ?Sized> {
    /// `[V, H]`, also the output head when tied.
    pub table: O::Weight,
    /// Multiplies every element.
    pub scale: f32,
    /// `[T, H]`, written.
    pub x: O::Tensor,
}

/// RMS norm: `y = x / sqrt(mean(x²) + eps) * weight`, sums in f32 in a fixed order.
pub struct Norm<O: Ops + ?Sized> {
    /// One weight an element (any `+1` of a family is added at load).
    pub weight: O::Vector,
    /// Added to the mean square.
    pub eps: f32,
}

/// A norm of a projection before it is added to the residual stream.
pub struct PostNorm<O: Ops + ?Sized> {
    /// The norm.
    pub norm: Norm<O>,
    /// `[T, H]` scratch.
    pub projected: O::Tensor,
}

/// Arguments of [`Ops::attn_input`].
pub struct AttnInput<O: Ops + ?Sized> {
    /// `[T, H]` residual stream.
    pub x: O::Tensor,
    /// Norm before the projection.
    pub norm: Norm<O>,
    /// `[T, H]` scratch.
    pub normed: O::Tensor,
    /// `[(Nq + 2·Nkv)·D, H]`: q rows, then k, then v.
    pub weight: O::Weight,
    /// `[(Nq + 2·Nkv)·D]`.
    pub bias: Option<O::Vector>,
    /// `[T, (Nq + 2·Nkv)·D]`, written.
    pub qkv: O::Tensor,
    /// What happens to q, k and v then; its `qkv` is this `qkv`.
    pub store: QkRopeStore<O>,
}

/// Arguments of [`Ops::qk_rope_store`].
pub struct QkRopeStore<O: Ops + ?Sized> {
    /// `[T, (Nq + 2·Nkv)·D]`; q is rewritten in place.
    pub qkv: O::Tensor,
    /// Head counts and size.
    pub heads: Heads,
    /// Norm over each query head (`[D]`).
    pub q_norm: Option<Norm<O>>,
    /// Norm over each key head (`[D]`).
    pub k_norm: Option<Norm<O>>,
    /// How positions turn q and k; `None` leaves them.
    pub rope: Option<Rope<O>>,
    /// The group's cache.
    pub kv: O::Kv,
    /// Index of the KV group in the batch.
    pub group: usize,
    /// Index of the layer within its group.
    pub layer: usize,
}

/// Attention heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Nq.
    pub num_q: usize,
    /// Nkv; divides Nq. Query head h reads KV head h / (Nq / Nkv).
    pub num_kv: usize,
    /// D.
    pub head_dim: usize,
}

/// Rotary embedding from tables, resolved at load for every scaling there is.
pub struct Rope<O: Ops + ?Sized> {
    /// `[max_len, rotary_dim]`: for each position rotary_dim/2 cosines, then rotary_dim/2 sines,
    /// an attention factor already multiplied in.
    pub keys: O::Vector,
    /// The same for queries, where they grow with their position: else the same handle.
    pub queries: O::Vector,
    /// Elements of each head that turn; the rest passes.
    pub rotary_dim: usize,
    /// Which elements form a pair.
    pub style: RopeStyle,
}

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + rotary_dim/2)`: Llama, Qwen and most others as published on the hub.
    Halves,
    /// `(2i, 2i + 1)`: GPT-J, ChatGLM.
    Interleaved,
}

/// Arguments of [`Ops::attention`].
pub struct Attention<O: Ops + ?Sized> {
    /// `[T, (Nq + 2·Nkv)·D]`; only q, the first Nq·D columns, is read.
    pub qkv: O::Tensor,
    /// Head counts and size.
    pub heads: Heads,
    /// Multiplies q·k.
    pub scale: f32,
    /// A row at position p sees keys in `(p − window, p]`; `None` sees all up to p.
    pub window: Option<u32>,
    /// `s = cap · tanh(s / cap)`.
    pub soft_cap: Option<f32>,
    /// `[Nq]` logits of a virtual key without value.
    pub sinks: Option<O::Vector>,
    /// The group's cache.
    pub kv: O::Kv,
    /// Index of the KV group in the batch.
    pub group: usize,
    /// Index of the layer within its group.
    pub layer: usize,
    /// `[T, Nq·D]`, written.
    pub out: O::Tensor,
}

/// Arguments of [`Ops::attn_output`].
pub struct AttnOutput<O: Ops + ?Sized> {
    /// `[T, Nq·D]`.
    pub attended: O::Tensor,
    /// `[H, Nq·D]`.
    pub weight: O::Weight,
    /// `[H]`.
    pub bias: Option<O::Vector>,
    /// Norm of the projection before it is added.
    pub post_norm: Option<PostNorm<O>>,
    /// `[T, H]` residual stream, added to.
    pub x: O::Tensor,
}

/// Arguments of [`Ops::mlp`].
pub struct Mlp<O: Ops + ?Sized> {
    /// `[T, H]` residual stream, added to.
    pub x: O::Tensor,
    /// Norm before the projections.
    pub norm: Norm<O>,
    /// `[T, H]` scratch.
    pub normed: O::Tensor,
    /// `[2·I, H]`, gate and up rows interleaved: g0, u0, g1, u1, … ([`Stacking::InterleavePairs`]).
    pub gate_up: O::Weight,
    /// Applied to the gate.
    pub activation: Activation,
    /// `[T, I]` scratch.
    pub inner: O::Tensor,
    /// `[H, I]`.
    pub down: O::Weight,
    /// Norm of the projection before it is added.
    pub post_norm: Option<PostNorm<O>>,
}

/// Arguments of [`Ops::moe`].
pub struct Moe<O: Ops + ?Sized> {
    /// `[T, H]` residual stream, added to.
    pub x: O::Tensor,
    /// Norm before router and experts.
    pub norm: Norm<O>,
    /// `[T, H]` scratch.
    pub normed: O::Tensor,
    /// `[E, H]`.
    pub router: O::Weight,
    /// `[T, E]` scratch for router logits.
    pub scores: O::Tensor,
    /// A.
    pub num_chosen: usize,
    /// How scores become weights.
    pub routing: Routing,
    /// Divide the chosen weights by their sum.
    pub renormalize: bool,
    /// `[E, 2·I, H]`, interleaved as in [`Mlp::gate_up`].
    pub gate_up: O::Experts,
    /// Applied to the gate.
    pub activation: Activation,
    /// `[T·A, I]` scratch.
    pub inner: O::Tensor,
    /// `[E, H, I]`.
    pub down: O::Experts,
    /// `[T·A, H]` scratch.
    pub outer: O::Tensor,
}

/// How router scores become expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Softmax over all experts, then the A largest (ties by lower expert).
    Softmax,
    /// A sigmoid each, then the A largest.
    Sigmoid,
}

/// Arguments of [`Ops::head`].
pub struct Head<O: Ops + ?Sized> {
    /// `[T, H]`.
    pub x: O::Tensor,
    /// `[R, H]` scratch.
    pub gathered: O::Tensor,
    /// Final norm.
    pub norm: Norm<O>,
    /// `[V, H]`.
    pub weight: O::Weight,
    /// `[V]`.
    pub bias: Option<O::Vector>,
    /// Multiplies the logits.
    pub scale: f32,
    /// `cap · tanh(logit / cap)` after scaling.
    pub soft_cap: Option<f32>,
    /// `[R, V]`, written.
    pub logits: O::Tensor,
}

/// Arguments of [`Ops::sample`].
pub struct Sample<O: Ops + ?Sized> {
    /// `[R, V]`.
    pub logits: O::Tensor,
    /// V, tokens that may be sampled (columns beyond are padding).
    pub vocab: usize,
}

/// Arguments of [`Ops::norm`].
pub struct NormRows<O: Ops + ?Sized> {
    /// `[T, H]`.
    pub x: O::Tensor,
    /// The norm.
    pub norm: Norm<O>,
    /// `[T, H]`, written.
    pub out: O::Tensor,
}

/// Arguments of [`Ops::linear`].
pub struct Linear<O: Ops + ?Sized> {
    /// `[T, K]`.
    pub x: O::Tensor,
    /// `[N, K]`.
    pub weight: O::Weight,
    /// `[N]`.
    pub bias: Option<O::Vector>,
    /// `[T, N]`, or `[T, N/2]` with a GLU epilogue.
    pub out: O::Tensor,
    /// What happens to the accumulated value.
    pub epilogue: Epilogue,
}

/// What a linear does with `acc + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// `out = v`.
    Store,
    /// `out += v`.
    Add,
    /// Columns come in pairs (gate, up): `out[j] = act(v[2j]) * v[2j + 1]`.
    Glu(Activation),
    /// `out = cap(v * scale)`.
    Scale {
        /// Multiplies.
        scale: f32,
        /// `cap · tanh(v / cap)`.
        soft_cap: Option<f32>,
    },
}

/// An activation function of an MLP gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `v · sigmoid(v)`.
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// GELU with erf.
    Gelu,
}

/// Arguments of [`Ops::gather_rows`].
pub struct GatherRows<O: Ops + ?Sized> {
    /// `[T, H]`.
    pub x: O::Tensor,
    /// `[R, H]`, written.
    pub out: O::Tensor,
}

/// How several matrices become one packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacking {
    /// Rows one part after another (q, k, v).
    Stack,
    /// Row i of the first part, row i of the second, row i + 1 of the first, … (gate, up).
    InterleavePairs,
}
