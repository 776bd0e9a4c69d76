# Two pools of machines: CPU, and GPU, where nothing runs until a pod asks for a GPU.
resource "aws_launch_template" "machine" {
  for_each    = { cpu = var.cpu_pool.disk_gib, gpu = var.gpu_pool.disk_gib }
  name_prefix = "${var.cluster_name}-${each.key}-"

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = each.value
      volume_type           = "gp3"
      encrypted             = true
      kms_key_id            = aws_kms_key.this.arn
      delete_on_termination = true
    }
  }

  # Pods get credentials by their service account, never the machine's: its metadata is one hop away, pods are two.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(module.plan.tags, { Name = "${var.cluster_name}-${each.key}" })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = module.plan.tags
  }
}

resource "aws_eks_node_group" "cpu" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "cpu"
  node_role_arn   = aws_iam_role.machine.arn
  subnet_ids      = [for subnet in aws_subnet.private : subnet.id]
  instance_types  = var.cpu_pool.instance_types
  ami_type        = "AL2023_x86_64_STANDARD"

  launch_template {
    id      = aws_launch_template.machine["cpu"].id
    version = aws_launch_template.machine["cpu"].latest_version
  }

  scaling_config {
    min_size     = var.cpu_pool.min_size
    desired_size = var.cpu_pool.min_size
    max_size     = var.cpu_pool.max_size
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    # The autoscaler's to say.
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.machine, aws_eks_addon.network, aws_eks_addon.proxy]
}

resource "aws_eks_node_group" "gpu" {
  count           = var.gpu_pool.max_size > 0 ? 1 : 0
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "gpu"
  node_role_arn   = aws_iam_role.machine.arn
  subnet_ids      = [for subnet in aws_subnet.private : subnet.id]
  instance_types  = var.gpu_pool.instance_types
  ami_type        = "AL2023_x86_64_NVIDIA"
  labels          = { "nvidia.com/gpu.present" = "true" }

  launch_template {
    id      = aws_launch_template.machine["gpu"].id
    version = aws_launch_template.machine["gpu"].latest_version
  }

  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  scaling_config {
    min_size     = 0
    desired_size = 0
    max_size     = var.gpu_pool.max_size
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.machine, aws_eks_addon.network, aws_eks_addon.proxy]
}

resource "aws_iam_role" "machine" {
  name               = "${var.cluster_name}-machine"
  assume_role_policy = data.aws_iam_policy_document.machine_trust.json
}

data "aws_iam_policy_document" "machine_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy_attachment" "machine" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])
  role       = aws_iam_role.machine.name
  policy_arn = "${local.arn}:iam::aws:policy/${each.value}"
}
