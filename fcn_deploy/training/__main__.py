"""``torchrun --nproc-per-node=N -m fcn_deploy.training DATA``: one rank of a training."""

if __name__ == "__main__":
    from fcn_deploy.cli.torchrun import main

    main()
