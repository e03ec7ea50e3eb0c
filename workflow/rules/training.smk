# Models of the methods: pretrain, teach, enter, align, condition, embedding-prior, adapt; or taken from a bundle.
rule pretrain_encoder:
    input:
        checked=CHECKED,
        prepared=unpaired(),
    output:
        directory(made(layout.PRETRAINED)),
    log:
        log_of(layout.PRETRAINED),
    benchmark:
        benchmark_of(layout.PRETRAINED)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("pretrain")
    resources:
        **resources_of("pretrain"),
    params:
        **call_of("pretrain"),
    message:
        "Pretrain the encoder of {wildcards.method} on resting fMRI"
    shell:
        "{params.command} 2> {log}"


rule teach_closed_form:
    input:
        checked=CHECKED,
        prepared=lambda wildcards: prepared(members(wildcards)),
        embeddings=lambda wildcards: embeddings(members(wildcards)),
    output:
        directory(made(layout.TAUGHT)),
    log:
        log_of(layout.TAUGHT),
    benchmark:
        benchmark_of(layout.TAUGHT)
    wildcard_constraints:
        method=methods(taken=False),
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("teach")
    resources:
        **resources_of("teach"),
    params:
        **call_of("teach"),
    message:
        "Learn what the voxels and pictures of {wildcards.group} have in common ({wildcards.method})"
    shell:
        "{params.command} 2> {log}"


rule enter_subject:
    input:
        checked=CHECKED,
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        taught=taught,
    output:
        directory(made(layout.ENTERED)),
    log:
        log_of(layout.ENTERED),
    benchmark:
        benchmark_of(layout.ENTERED)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("enter")
    resources:
        **resources_of("enter"),
    params:
        **call_of("enter"),
    message:
        "Decode {wildcards.subject} ({wildcards.dataset}) in closed form ({wildcards.method})"
    shell:
        "{params.command} 2> {log}"


rule align_subjects:
    input:
        checked=CHECKED,
        prepared=prepared_of_members,
        embeddings=lambda wildcards: embeddings(members(wildcards)),
        entered=entered(members),
        pretrained=pretrained,
    output:
        directory(made(layout.ALIGNED)),
    log:
        log_of(layout.ALIGNED),
    benchmark:
        benchmark_of(layout.ALIGNED)
    wildcard_constraints:
        method=methods(taken=False),
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("align")
    resources:
        **resources_of("align"),
    params:
        **call_of("align"),
    message:
        "Train what {wildcards.group} share, aligned across subjects and with the pictures ({wildcards.method})"
    shell:
        "{params.command} 2> {log}"


rule condition_diffusion:
    input:
        checked=CHECKED,
        prepared=prepared_of_members,
        embeddings=lambda wildcards: embeddings(members(wildcards)),
        entered=entered(members),
        encoder=encoder,
        diffusion=network("diffusion"),
        autoencoder=crops(lambda wildcards: network("autoencoder")),
        stimuli=crops(
            lambda wildcards: [
                stimulus_file(layout.STIMULI, *pair) for pair in members(wildcards)
            ]
        ),
    output:
        directory(made(layout.CONDITIONED)),
    log:
        log_of(layout.CONDITIONED),
    benchmark:
        benchmark_of(layout.CONDITIONED)
    wildcard_constraints:
        method=methods(taken=False),
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("condition")
    resources:
        **resources_of("condition"),
    params:
        **call_of("condition"),
    message:
        "Condition the diffusion model on the fMRI of {wildcards.group} ({wildcards.method})"
    shell:
        "{params.command} 2> {log}"


rule learn_embedding_prior:
    input:
        checked=CHECKED,
        embeddings=lambda wildcards: embeddings(members(wildcards)),
        entered=entered(members),
        aligned=aligned,
    output:
        directory(made(layout.EMBEDDING_PRIOR)),
    log:
        log_of(layout.EMBEDDING_PRIOR),
    benchmark:
        benchmark_of(layout.EMBEDDING_PRIOR)
    wildcard_constraints:
        method=methods(taken=False),
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("embedding-prior")
    resources:
        **resources_of("embedding-prior"),
    params:
        **call_of("embedding-prior"),
    message:
        "Learn which embeddings the regressed ones of {wildcards.group} may stand for ({wildcards.method})"
    shell:
        "{params.command} 2> {log}"


rule adapt_subject:
    input:
        checked=CHECKED,
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        shared=shared,
        training_prepared=lambda wildcards: prepared(teachers(wildcards)),
        training_embeddings=lambda wildcards: embeddings(teachers(wildcards)),
    output:
        directory(made(layout.ADAPTED)),
    log:
        log_of(layout.ADAPTED),
    benchmark:
        benchmark_of(layout.ADAPTED)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("adapt")
    resources:
        **resources_of("adapt"),
    params:
        **call_of("adapt"),
    message:
        "Adapt {wildcards.method} to the new subject {wildcards.subject} ({wildcards.dataset})"
    shell:
        "{params.command} 2> {log}"


rule take_model:
    output:
        directory(made("models/{method}/{part}/{group}")),
    log:
        log_of("models/{method}/{part}/{group}"),
    benchmark:
        benchmark_of("models/{method}/{part}/{group}")
    wildcard_constraints:
        method=methods(taken=True),
        part="teach|align|condition|embedding-prior",
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("take")
    resources:
        **resources_of("take"),
    params:
        **call_of("take"),
        content=bundled(),
    message:
        "Take what {wildcards.method}'s training subjects taught out of the bundle ({wildcards.part})"
    shell:
        "{params.command} 2> {log}"
