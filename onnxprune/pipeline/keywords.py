"""The keywords of `prune`, for editors and type checkers.

Made from the declarations of options by tools/generate.py; do not edit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from onnxprune.allocation.options import Amount, Target
    from onnxprune.calibration.presets import Preprocess
    from onnxprune.importance.score import Scorer
    from onnxprune.runtime.jobs import Where


class Keywords(TypedDict, total=False):
    """What `prune(model, **options)` takes."""

    channels: Amount | None
    """Fraction of the units of every group that is removed: channels, filters, neurons, recurrent units. auto:
    whatever a target needs. Unit: fraction removed.
    """

    heads: Amount | None
    """Attention heads, through q, k, v and the output; shared keys and values go with their queries. Unit: fraction
    removed.
    """

    head_dim: Amount | None
    """Dimensions inside of heads: q with k, v with the output projection; rotary pairs together. Unit: fraction
    removed.
    """

    hidden: Amount | None
    """Width of residual streams that are normalised (transformers, Swin, ConvNeXt), through everything. Unit:
    fraction removed.
    """

    layers: Amount | None
    """Residual blocks, of transformers and of CNNs: those that change the stream least. Unit: fraction removed."""

    experts: Amount | None
    """Experts of mixtures of experts. Unit: fraction removed."""

    whole_layers: bool
    """layers: attention goes with the feed-forward block after it. Default: False."""

    allow_io_change: bool
    """Inputs and outputs that hold heads (key-value caches, masks per head) may shrink with them. Default: False."""

    ratio: Mapping[str, float | str] | tuple[tuple[str, float | str], ...]
    """Fraction removed from the groups, or made zero in the layers, whose name, node, weight or output matches.
    Repeatable, last match wins; without channels, heads, ... only what matches is pruned. KIND (channels, heads,
    head_dim, hidden, layers, experts, sparsity) says which, where the glob does not. Unit: fraction removed.
    """

    ignore: tuple[str, ...] | list[str] | str
    """Leave matching groups or layers alone. Repeatable."""

    target_macs: Target | None
    """MACs that are left: 0.7, 70% or 300M. Unit: fraction or MACs left."""

    target_params: Target | None
    """Parameters that are left: 0.7, 70% or 5M. Two targets must both hold; a fixed channels applies first. Unit:
    fraction or parameters left.
    """

    target_bytes: Target | None
    """Size of the file that is left: 0.7, 70% or 5MB. Unit: fraction or bytes left."""

    target_latency: Target | None
    """Time of a run that is left: 0.7, 70% or 2ms. It is measured here, on the finished model; methods says what may
    be done for it. Unit: fraction or seconds left.
    """

    target_energy: Target | None
    """Energy of a run that is left, by a model of arithmetic and memory: 0.7, 70%, 2mJ or 300uJ. Unit: fraction or
    joules left.
    """

    target_memory: Target | None
    """Peak memory of a run that is left, weights and tensors that live together: 0.7, 70% or 20MB. Unit: fraction or
    bytes left.
    """

    methods: tuple[str, ...] | list[str] | str
    """What a target may be reached by: channels: channels, filters, neurons go; heads: attention heads go; layers:
    residual blocks go; head-dim: dimensions inside of heads go; hidden: width of normalised streams goes;
    experts: experts of mixtures go; unstructured: single weights become zero, stored for our sparse kernels; nm:
    2 of every 4 weights stay, stored for our sparse kernels; block: tiles of 4x4 weights go, stored for our
    sparse kernels; column: inputs of a layer go for all its outputs, in plain ONNX; values: what our kernels
    store may be float16 or int8; cluster: weights become few values each, stored as indices in plain ONNX.
    Default: all that can run here, with target_latency.
    """

    plain: bool
    """Nothing that needs our operators in the file: it runs wherever ONNX does. Default: False."""

    plan: Any
    """Replay a plan that --save-plan wrote: what is kept, the zeros and their storage come from it."""

    plan_for_another_model: bool
    """plan may be one that was made for another model of the same structure. Default: False."""

    importance: str | Scorer | None
    """What makes a unit worth keeping; list explains them. In Python also a function: group -> scores. One of path,
    l1, l2, linf, lp:P, bn_scale, fpgm, lamp, random, activation, variance, apoz, hrank, wanda, energy, obs,
    regression, head_loss, taylor, fisher, obd, snip, grasp, synflow. Default: obs with data, path without.
    """

    scores: Mapping[str, Any] | str | Path | None
    """Instead of importance: an array of scores per group, by the group's name; larger ones stay."""

    allocate: str | None
    """uniform: the same fraction of every group; global: one threshold over all units; kl: what the outputs suffer
    least from, measured on data (needs a target); error: what the layers that read the units suffer least from;
    quick, and better than kl on made-up data (as kl). Default: kl with data and a target, uniform else.
    """

    round_to: int
    """Widths become multiples of N; 1 is exact. Unit: units. Default: 8."""

    max_ratio: float | str | None
    """Most that is removed of any group. Unit: fraction removed. Default: 0.8 for global and targets."""

    steps: int
    """Cut in N steps, scoring what is left again after each; zeros in N growing steps. Default: 1."""

    sparsity: float | str | None
    """Fraction of the weights of products (MatMul, Gemm, convolutions, recurrent layers) that becomes zero, after
    channels; of those that format can store: dense and sparse-initializer store all. Unit: fraction made zero.
    """

    pattern: str | None
    """2:4 keeps 2 of every 4 consecutive weights along the reduction (of Conv: input channels), as TensorRT wants
    them; N counts what is kept, where other texts may count what goes. With sparsity: block:RxC, tiles of R
    outputs by C inputs go as a whole; column, inputs of a layer (of Conv: at a kernel position) go for all its
    outputs, and dense kernels do less.
    """

    quality: float | str | None
    """Instead: weights below Q standard deviations of their layer become zero. Unit: standard deviations."""

    permute: bool
    """With pattern=N:M, reorder channels through the whole graph so that less is lost. Default: True."""

    solver: str | None
    """Which weights stay, and with which values; all but magnitude and taylor and snip and grasp and synflow need
    calibration; list explains them. Default: admm with calibration, magnitude without.
    """

    sparsity_allocate: str | None
    """Where the zeros go; list explains them. One of uniform, global, erk, lamp, owl, error. Default: error with
    calibration, uniform without.
    """

    sparsity_schedule: str | None
    """How zeros grow in steps. One of linear, cubic, geometric. Default: linear."""

    format: str | None
    """How zeros are stored, those that are made or, without sparsity, those that the model has. auto: sparse
    operators for those layers with which the whole session measures faster on this machine; dense: zeros in a
    plain file; csr: compressed rows in operators of ours, for all layers; nm: N of every M weights in operators
    of ours, for all layers; bsr: tiles in operators of ours, for all layers; columns: smaller dense layers, with
    pattern='column'; sparse-initializer: ONNX's own coordinates, smaller above about 70%. Default: auto where
    weights are made zero.
    """

    values: str
    """Type of the values that sparse operators store: float32, bfloat16, float16, int8; int8 has a scale per row.
    What it costs is in the report. Default: 'float32'.
    """

    cluster: int | None
    """Every weight becomes one of K values, stored as indices into a codebook in plain ONNX: a smaller file, the
    same memory and speed. Comes last, after channels and sparsity.
    """

    cluster_per: str
    """One codebook for every tensor or channel. Default: 'tensor'."""

    cluster_storage: str
    """How indices are stored. uint8, packed: every runtime from opset 7; uint4: opset 21 and onnxruntime 1.23; auto:
    the smaller of the first two. Default: 'auto'.
    """

    recover: str | None
    """How the loss is made up for. One of least-squares, mean-std, batchnorm, bias, none. Default: least-squares
    with data, bias without.
    """

    tune: str | float | None
    """Train the weights that are left towards the original's outputs, on the calibration samples without labels, or
    on train: so many epochs, or 500steps, or a time, 5min, which the plan records as steps. An eighth of the
    samples is held out; where they do not fare better, the model stays as it was. Default: no tuning.
    """

    train: Any
    """Samples of tune, and of what goes by labels, as importance='taylor': any source that calibration takes, read
    as it is needed. With labels (an array labels, sub-folders per class, or train_labels) the loss is cross
    entropy, for tune mixed with distillation. Default: the calibration samples.
    """

    train_labels: Any
    """Labels of train: .npy, .txt, .csv, .json."""

    loss: Any
    """What is trained towards: names with weights, or a .onnx file that computes one number from the outputs and
    labels. In Python also a function that adds its nodes. cross-entropy: -log of the probability of the label;
    kl: divergence of the original's probabilities from the model's; squared-error: (y - t)^2 over the variance of
    the original's outputs; absolute-error: |y - t| over the deviation of the original's outputs. Default:
    cross-entropy:0.5,kl:0.5 with labels, else kl of a classifier, squared-error of other models.
    """

    learning_rate: float | None
    """The highest rate, after warmup; it falls by schedule. Default: by a short range test; below 160 steps 0.0001,
    of sgd 0.01, ten times that where nothing made up for what went.
    """

    batch_size: int
    """Samples of one step; 1 where the model takes one at a time. Unit: samples. Default: 64."""

    optimizer: str
    """How weights follow gradients. One of adam, adamw, sgd. Default: 'adam'."""

    momentum: float
    """Of sgd: the part of a step that the next one repeats. Default: 0.9."""

    weight_decay: float
    """The part of every weight, per step and unit of the rate, that it is pulled towards zero. Default: 0.0."""

    schedule: str
    """How the rate falls. One of cosine, linear, step, constant. Default: 'cosine'."""

    regularize: str | None
    """Before the cut, train the network for half of the steps of tune under a penalty that drives whole units
    towards zero, and choose on what came out; the other half tunes after the cut. One of bn, group, growing.
    Default: no sparse learning.
    """

    regularize_strength: float | None
    """What the penalty adds to the loss at the first step; of growing the sum over all steps of the part that each
    takes of the weights. Default: 1 of bn, 1 of group, 7 of growing.
    """

    warmup: int | None
    """Steps in which the rate rises to its height. Unit: steps. Default: 20, at most an eighth of all."""

    calibration: Any
    """Unlabelled samples, a few hundred: .npz or .npy (first axis: samples), a folder or zip of .npy or of images,
    or the word synthetic. In Python also arrays by input name, or an iterable of feeds. Default: images are made
    up where one goes in.
    """

    samples: int | None
    """At most so many of them, evenly spread. Default: 256 to 1024, by the model's MACs; of made-up ones 16 to 256,
    by its layers and the time.
    """

    augment: bool | str | tuple[str, ...]
    """Alone: random crops and flips of calibration images, or, with train, of the pictures that are trained on. With
    names, separated by commas, what is done to the pictures of tune. crop: shifted by up to an eighth of the
    height and width; flip: flipped from left to right, or not; resized-crop: 30 to 100% of the area, scaled to
    the whole (Szegedy et al. 2015); mixup: two pictures and their labels mixed (Zhang et al. 2018). Default:
    False.
    """

    memory: float | str
    """For activations, in GB or with a unit; less means more passes, and smaller parts of a step of tune. Unit:
    bytes. Default: 250MB.
    """

    cache: Path | str | os.PathLike[str] | None
    """Keep the level database, finished sparse layers and the state of tune here; other targets for the same model,
    data and options then take seconds, and a run that was stopped goes on, to the same result.
    """

    jobs: Where | int | str | None
    """Solves in parallel; or parts of the level database on the workers of a Dask or Ray cluster of yours, which
    must see the samples and cache by the same names. Default: all cores.
    """

    preset: str | None
    """How pixels become inputs: x = (x * scale - mean) / std of values 0 to 255. imagenet: its mean and deviation;
    tf: -1 to 1; unit: 0 to 1; caffe: BGR minus means; raw: 0 to 255. Default: guessed and said.
    """

    image_size: int | None
    """The shorter side is resized to N pixels. Unit: pixels. Default: input / 0.875."""

    crop: int | None
    """Pixels of the square that is cut from the middle. Unit: pixels. Default: the input's size."""

    mean: tuple[float, ...] | None
    """Per channel, after scale. Default: of the preset."""

    std: tuple[float, ...] | None
    """Per channel. Default: of the preset."""

    scale: float | None
    """Factor of the pixels, as 0.0039. Default: of the preset."""

    layout: str
    """Order of the axes; auto: by the input's shape. Default: 'auto'."""

    channel_order: str
    """Of colours; auto: of the preset. Default: 'auto'."""

    evaluate: Any
    """Measure before and after on this: any source that calibration takes, with labels (an array labels, sub-folders
    per class, or labels), or module:function in Python, which gets the path of a model. In Python also a
    function: path -> one number, or one per sample.
    """

    labels: Any
    """Labels of evaluate: .npy, .txt, .csv, .json."""

    metric: str | None
    """top1: share of samples whose label has the largest score; top5: share of samples whose label is among the five
    largest scores; agreement: share of samples with the same largest score as in the original; loss: cross
    entropy of the labels in nats; its exponential is the perplexity; mse: squared distance from the original's
    outputs over their variance. Default: top1 with labels, else agreement or mse.
    """

    max_drop: float | str | None
    """The smallest model whose metric on evaluate falls by at most D; 0.01 or 1% is one point. Searched on a third
    of the samples, confirmed on the rest, always on the model as it is written. Unit: of the metric.
    """

    minimize: str | None
    """What max_drop makes as small as the bound allows: latency, energy, bytes, macs, memory, params. Default: macs."""

    input_shape: Mapping[str, tuple[int, ...]] | tuple[tuple[str, tuple[int, ...]], ...]
    """Concrete shape of a dynamic input, for the analysis, MACs and the check. Repeatable."""

    verify: bool
    """Check file, shapes, inputs and outputs, and that pruned equals masked, before anything is written. Default:
    True.
    """

    measure: bool
    """Time both models in onnxruntime. Default: True."""

    energy: bool
    """Report the energy of a run, by a model of arithmetic and memory; docs/energy.md has it. Default: False."""

    energy_table: str | Path
    """Whose picojoules that model takes; a file has others. list shows them. One of horowitz. Default: 'horowitz'."""

    threads: int
    """onnxruntime's intra-op threads. Default: all cores."""

    seed: int
    """Of random inputs and scores. Default: 0."""

    dry_run: bool
    """Plan and report; write no model. Default: False."""

    repeat: int
    """Measure the times that a search goes by N times as long, on a machine that is noisy. Default: 1."""

    latency_table: Path | None
    """Times of this model's nodes, of `onnxprune latency-table`, instead of measuring. Default: this machine is
    measured.
    """

    elsewhere: bool
    """The table is of another device, which the model is for; what a run takes is predicted, not measured. Default:
    False.
    """

    preprocess: Preprocess | None
    """The options of images in one value."""
