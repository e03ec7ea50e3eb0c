# The frozen networks the methods stand on, and what they make of the pictures.
localrules:
    get_foundation,


rule get_foundation:
    input:
        embedding=before_diffusion("embedding"),
        autoencoder=before_diffusion("autoencoder"),
    output:
        directory(made(layout.FOUNDATION)),
    log:
        log_of(layout.FOUNDATION),
    benchmark:
        benchmark_of(layout.FOUNDATION)
    wildcard_constraints:
        name=foundations("obtained"),
    retries: 2
    conda:
        "../../envs/networks.yaml"
    threads: 1
    resources:
        **resources_of("foundation", retried=True),
    params:
        **call_of("foundation"),
        content=bundled(),
    message:
        "Get the frozen network: {wildcards.name}"
    shell:
        "{params.command} 2> {log}"


rule train_foundation:
    input:
        checked=checked_before,
        embedding=before_diffusion("embedding"),
        autoencoder=before_diffusion("autoencoder"),
        stimuli=pictures_of_diffusion(layout.STIMULI),
        embeddings=pictures_of_diffusion(layout.EMBEDDINGS),
    output:
        directory(made(layout.FOUNDATION)),
    log:
        log_of(layout.FOUNDATION),
    benchmark:
        benchmark_of(layout.FOUNDATION)
    wildcard_constraints:
        name=foundations("trained"),
    priority: first_where_others_wait
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("foundation")
    resources:
        **resources_of("foundation"),
    params:
        **call_of("foundation"),
    message:
        "Train the study's own frozen network: {wildcards.name}"
    shell:
        "{params.command} 2> {log}"


rule embed_stimuli:
    input:
        stimuli=lambda wildcards: made(STUDY.pictures(wildcards.dataset), **wildcards),
        embedding=network("embedding"),
        autoencoder=network("autoencoder"),
    output:
        made(layout.EMBEDDINGS),
    log:
        log_of(layout.EMBEDDINGS),
    benchmark:
        benchmark_of(layout.EMBEDDINGS)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("embed")
    resources:
        **resources_of("embed"),
    params:
        **call_of("embed"),
    message:
        "Embed the pictures of {wildcards.dataset} ({wildcards.stimuli}): image embeddings and autoencoder latents"
    shell:
        "{params.command} 2> {log}"


rule take_foundation:
    output:
        directory(made(layout.FOUNDATION)),
    log:
        log_of(layout.FOUNDATION),
    benchmark:
        benchmark_of(layout.FOUNDATION)
    wildcard_constraints:
        name=foundations("taken"),
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("take")
    resources:
        **resources_of("take"),
    params:
        **call_of("take", part=lambda wildcards: wildcards.name),
        content=bundled(),
    message:
        "Take the frozen network out of the bundle: {wildcards.name}"
    shell:
        "{params.command} 2> {log}"


rule embed_candidates:
    input:
        stimuli=made(layout.CANDIDATES),
        embedding=network("embedding"),
        autoencoder=network("autoencoder"),
    output:
        made(layout.EMBEDDED_CANDIDATES),
    log:
        log_of(layout.EMBEDDED_CANDIDATES),
    benchmark:
        benchmark_of(layout.EMBEDDED_CANDIDATES)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("embed")
    resources:
        **resources_of("embed"),
    params:
        **call_of("embed"),
    message:
        "Embed the candidates of {wildcards.candidates}"
    shell:
        "{params.command} 2> {log}"
