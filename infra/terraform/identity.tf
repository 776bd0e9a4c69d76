# Who may do what, without a key that lasts: pods by EKS Pod Identity, GitHub's workflow by OpenID Connect.

data "aws_iam_policy_document" "pods_trust" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

resource "aws_iam_role" "pods" {
  for_each           = toset(["product", "network", "disks", "autoscaler"])
  name               = "${var.cluster_name}-pods-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.pods_trust.json
}

resource "aws_iam_role_policy_attachment" "network" {
  role       = aws_iam_role.pods["network"].name
  policy_arn = "${local.arn}:iam::aws:policy/AmazonEKS_CNI_Policy"
}

resource "aws_iam_role_policy_attachment" "disks" {
  role       = aws_iam_role.pods["disks"].name
  policy_arn = "${local.arn}:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}

# The product's pods: the bucket, and the key it is encrypted with.
resource "aws_eks_pod_identity_association" "product" {
  for_each        = module.plan.service_accounts
  cluster_name    = aws_eks_cluster.this.name
  namespace       = module.plan.namespace
  service_account = each.key
  role_arn        = aws_iam_role.pods["product"].arn
}

resource "aws_iam_role_policy" "product" {
  name   = "bucket"
  role   = aws_iam_role.pods["product"].id
  policy = data.aws_iam_policy_document.product.json
}

data "aws_iam_policy_document" "product" {
  statement {
    actions   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.this.arn]
  }

  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = ["${aws_s3_bucket.this.arn}/*"]
  }

  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]
  }
}

# The cluster autoscaler (docs/cloud_deployment_aws.md): it sees all groups and changes this cluster's.
resource "aws_eks_pod_identity_association" "autoscaler" {
  cluster_name    = aws_eks_cluster.this.name
  namespace       = "kube-system"
  service_account = "cluster-autoscaler"
  role_arn        = aws_iam_role.pods["autoscaler"].arn
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "scale"
  role   = aws_iam_role.pods["autoscaler"].id
  policy = data.aws_iam_policy_document.autoscaler.json
}

data "aws_iam_policy_document" "autoscaler" {
  #checkov:skip=CKV_AWS_356:Describe calls of these services know no resources.
  statement {
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"]
  }

  statement {
    actions   = ["eks:DescribeNodegroup"]
    resources = ["${local.arn}:eks:${var.aws_region}:${local.account}:nodegroup/${var.cluster_name}/*"]
  }

  statement {
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["${local.arn}:autoscaling:${var.aws_region}:${local.account}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.cluster_name}"
      values   = ["owned"]
    }
  }
}

# The workflow of one repository in one environment: it pushes the image and deploys into the product's namespace.
resource "aws_iam_openid_connect_provider" "github" {
  count          = length(module.plan.github_subjects) > 0 ? 1 : 0
  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "github" {
  count                = length(module.plan.github_subjects) > 0 ? 1 : 0
  name                 = "${var.cluster_name}-github"
  max_session_duration = 3600
  assume_role_policy   = data.aws_iam_policy_document.github_trust[0].json
}

data "aws_iam_policy_document" "github_trust" {
  count = length(module.plan.github_subjects) > 0 ? 1 : 0

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.github[0].arn]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:sub"
      values   = module.plan.github_subjects
    }
  }
}

resource "aws_iam_role_policy" "github" {
  count  = length(module.plan.github_subjects) > 0 ? 1 : 0
  name   = "push-and-deploy"
  role   = aws_iam_role.github[0].id
  policy = data.aws_iam_policy_document.github.json
}

data "aws_iam_policy_document" "github" {
  #checkov:skip=CKV_AWS_356:ecr:GetAuthorizationToken knows no resources.
  statement {
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    actions = [
      "ecr:BatchCheckLayerAvailability",
      "ecr:BatchGetImage",
      "ecr:CompleteLayerUpload",
      "ecr:DescribeImages",
      "ecr:GetDownloadUrlForLayer",
      "ecr:InitiateLayerUpload",
      "ecr:PutImage",
      "ecr:UploadLayerPart",
    ]
    resources = [aws_ecr_repository.this.arn]
  }

  statement {
    actions   = ["eks:DescribeCluster"]
    resources = [aws_eks_cluster.this.arn]
  }
}

resource "aws_eks_access_entry" "github" {
  count         = length(module.plan.github_subjects) > 0 ? 1 : 0
  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_iam_role.github[0].arn
}

resource "aws_eks_access_policy_association" "github" {
  count         = length(module.plan.github_subjects) > 0 ? 1 : 0
  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_eks_access_entry.github[0].principal_arn
  # Everything, and KubeRay's kinds with it, but inside the product's namespace only.
  policy_arn = "${local.arn}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"

  access_scope {
    type       = "namespace"
    namespaces = [module.plan.namespace]
  }
}
